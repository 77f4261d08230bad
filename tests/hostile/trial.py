"""One entry of the catalogue after the other against a server under load, each behind a time of
quiet; and what the load felt in both."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.rounds import percentile
from tests.hostile.acts import TURNED_AWAY, Entry
from tests.hostile.load import Measured, Window, within
from tests.hostile.served import Served

PAUSE = 1.0
"""Seconds after a hostile client, before the load counts as undisturbed; and before the next one:
what is asked in them is answered beside it."""
MOST_RATIO = 2.0


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


async def run_entry(
    entry: Entry, group: str, server: Served, attacker: Attacker, seconds: float
) -> Run:
    await asyncio.sleep(PAUSE)
    begun = time.monotonic()
    await asyncio.sleep(seconds / 2)
    solo = Window(begun, time.monotonic())
    await asyncio.sleep(PAUSE)
    server.forget_most()
    begun = time.monotonic()
    ended = await attacker.attack(entry, seconds)
    hostile = Window(begun, time.monotonic())
    memory = server.resident_bytes, server.most_resident_bytes
    return Run(entry, group, solo, hostile, ended, *memory)


@dataclass(frozen=True, slots=True)
class Felt:
    """By the tenants of the load, in seconds."""

    first: list[float] = field(repr=False)
    between: list[float] = field(repr=False)
    health: list[float] = field(repr=False)

    @classmethod
    def of(cls, measured: Measured, windows: Iterable[Window]) -> Felt:
        chosen: Sequence[Window] = list(windows)
        return cls(
            within(measured.first, chosen),
            within(measured.between, chosen),
            within(measured.health, chosen),
        )


@dataclass(frozen=True, slots=True)
class Beside:
    """What the load felt beside hostile clients, and without."""

    solo: Felt
    hostile: Felt

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
    """Of their p99; nothing is nothing."""
    return percentile(some, 0.99) / percentile(others, 0.99) if some and others else 0.0


def beside(measured: Measured, runs: Sequence[Run], solo: Sequence[Run] = ()) -> Beside:
    """Of runs; the undisturbed time may be that of more of them."""
    return Beside(
        Felt.of(measured, (run.solo for run in solo or runs)),
        Felt.of(measured, (run.hostile for run in runs)),
    )
