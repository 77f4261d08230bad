"""One entry of the catalogue after the other against a server under load, each behind a time of
quiet; and what the load felt in both."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.rounds import percentile
from tests.hostile.acts import TURNED_AWAY, Entry
from tests.hostile.catalogue import ENTRIES
from tests.hostile.load import Measured, Span, Window, beside, inside
from tests.hostile.served import Served

PAUSE = 1.0
"""Seconds after a hostile client, before the load counts as undisturbed; and before the next one:
what is asked in them is answered beside it."""
MOST_RATIO = 2.0
HEALTH_SECONDS = 1.0
TRIES, LONGER_SECONDS = 3, 10.0
"""How often, and for how long, an entry is tried again that was over the limit."""


@dataclass(frozen=True, slots=True)
class Run:
    """One entry, once."""

    entry: Entry
    group: str
    solo: Window
    hostile: Window
    ended: Counter[str]
    resident_bytes: int
    most_resident_bytes: int

    @property
    def faults(self) -> list[str]:
        """Ends that the catalogue does not state."""
        stated = {self.entry.ends, *self.entry.may, *TURNED_AWAY}
        wrong = [f"{end} ({count} times)" for end, count in self.ended.items() if end not in stated]
        if not self.ended[self.entry.ends]:
            wrong.append(f"never {self.entry.ends}: {dict(self.ended)}")
        return [f"{self.entry.name}: {fault}" for fault in wrong]


class Attacker:
    """The process of hostile clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def attack(self, entry: Entry, seconds: float) -> Counter[str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = json.dumps({"entry": entry.name, "seconds": seconds})
        self._process.stdin.write(asked.encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, "the process of hostile clients ended"
        return Counter(json.loads(line))


@asynccontextmanager
async def attacking(server: Served, tenant: str) -> AsyncIterator[Attacker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile.attack", str(server.port), server.keys[tenant]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Attacker(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Felt:
    """By the tenants of the load, in seconds."""

    first: list[float] = field(repr=False)
    between: list[float] = field(repr=False)
    health: list[float] = field(repr=False)

    @classmethod
    def of(cls, measured: Measured, choose: Callable[[Sequence[Span]], list[float]]) -> Felt:
        return cls(choose(measured.first), choose(measured.between), choose(measured.health))


@dataclass(frozen=True, slots=True)
class Compared:
    """What the load felt without hostile clients, and beside them."""

    solo: Felt
    hostile: Felt

    @classmethod
    def of(cls, measured: Measured, runs: Sequence[Run], solo: Sequence[Run] = ()) -> Compared:
        """Of runs; the undisturbed time may be that of more of them."""
        quiet = [run.solo for run in solo or runs]
        hostile = [run.hostile for run in runs]
        return cls(
            Felt.of(measured, partial(inside, windows=quiet, slack=PAUSE)),
            Felt.of(measured, partial(beside, windows=hostile)),
        )

    @property
    def first(self) -> float:
        return _ratio(self.hostile.first, self.solo.first)

    @property
    def between(self) -> float:
        return _ratio(self.hostile.between, self.solo.between)

    @property
    def is_bearable(self) -> bool:
        return max(self.first, self.between) <= MOST_RATIO


def _ratio(some: Sequence[float], others: Sequence[float]) -> float:
    """Of their p99. Where nothing came, nothing can be said for it."""
    return percentile(some, 0.99) / percentile(others, 0.99) if some and others else math.inf


class Trial:
    """Entries against a server whose load is measured."""

    def __init__(self, server: Served, attacker: Attacker, measured: Measured) -> None:
        self.server = server
        self.measured = measured
        self.runs: list[Run] = []
        self._attacker = attacker

    async def run(self, group: str, name: str, seconds: float) -> Run:
        await asyncio.sleep(PAUSE)
        begun = time.monotonic()
        await asyncio.sleep(seconds / 2)
        solo = Window(begun, time.monotonic())
        await asyncio.sleep(PAUSE)
        self.server.forget_most()
        begun = time.monotonic()
        ended = await self._attacker.attack(ENTRIES[name], seconds)
        hostile = Window(begun, time.monotonic())
        memory = self.server.resident_bytes, self.server.most_resident_bytes
        self.runs.append(Run(ENTRIES[name], group, solo, hostile, ended, *memory))
        print(name, dict(ended), flush=True)
        return self.runs[-1]

    async def bears(self, group: str, name: str) -> bool:
        """Whether the load bears an entry, which is tried again where it did not."""
        tries = [run for run in self.runs if run.entry.name == name]
        for number in range(TRIES + 1):
            solo = [run for run in self.runs if run.group == group]
            if any(Compared.of(self.measured, [run], solo).is_bearable for run in tries):
                return True
            if number < TRIES:
                tries.append(await self.run(group, name, LONGER_SECONDS))
        return False

    @property
    def faults(self) -> list[str]:
        """What is not as the catalogue, or the limits, have it."""
        found = [fault for run in self.runs for fault in run.faults]
        for group in {run.group for run in self.runs}:
            felt = Compared.of(self.measured, [run for run in self.runs if run.group == group])
            if not felt.is_bearable:
                found.append(f"{group}: {felt.first:.2f}, {felt.between:.2f} times")
        most, stated = max(run.most_resident_bytes for run in self.runs), self.server.stated_bytes
        if most > stated:
            found.append(f"memory: {most >> 20} MiB, of {stated >> 20}")
        slowest = max(seconds for _, seconds in self.measured.health)
        if slowest > HEALTH_SECONDS:
            found.append(f"/health took {slowest:.2f} s")
        return found
