"""One tenant at ten times the load of another, on a real socket and a real base: while both have
requests waiting, what they are served differs by no more than the bound of the VTC paper.

Service is counted from outside, from the tokens that arrive: those of a prompt with its first
token, for each of its copies.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.result import Table, publish
from remix_runtime.demo_model import demo_model
from remix_runtime.fairness.queue import OUTPUT_WEIGHT, PROMPT_WEIGHT, service_bound
from tests.hostile.acts import COMPLETIONS, as_json
from tests.hostile.served import Served, serving
from tests.hostile.test_catalogue import EXAMPLES
from tests.hostile.wire import connected, request

BOUNDS = float(os.environ.get("REMIX_HOSTILE_BOUNDS", "3"))
"""Times the bound that the quiet tenant is served, so that it says something."""
OUT = os.environ.get("REMIX_HOSTILE_SHARES_OUT")
"""Where the result is written, without its ending."""

RUNNING, WAITING = 8, 64
CALLERS = 12
"""Requests that each tenant has at a time: more than may run, so some always wait."""
PROMPT, NEW_TOKENS = 16, 16
TIMES = 10
OPTIONS = (
    *("--max-running", str(RUNNING), "--max-waiting", str(WAITING), "--max-model-len", "512"),
    *("--kv-cache-bytes", str(512 << 20), "--memory-bytes", str(5 << 30)),
    *("--threads", os.environ.get("REMIX_HOSTILE_THREADS", "1")),
)

pytestmark = pytest.mark.timeout(24 * 3600)


def stops(count: int) -> list[str]:
    return ["never said " * 90 + str(number) for number in range(count)]


@dataclass(frozen=True, slots=True)
class Abuse:
    """What the loud tenant does otherwise than the quiet one."""

    callers: int = CALLERS
    prompt: int = PROMPT
    copies: int = 1
    """Of the prompt."""
    stop_strings: int = 1


ABUSE: dict[str, Abuse] = {
    "nothing": Abuse(),
    "requests": Abuse(callers=TIMES * CALLERS),
    "n": Abuse(copies=TIMES),
    "prompt bytes": Abuse(prompt=TIMES * PROMPT),
    "stop strings": Abuse(stop_strings=TIMES),
}


@dataclass(slots=True)
class Service:
    """What the two tenants were served, weighted."""

    loud: int = 0
    quiet: int = 0
    low: int = 0
    high: int = 0
    refused: int = 0
    """Requests of the loud one."""

    def add(self, tenant: str, tokens: int) -> None:
        if tenant == "loud":
            self.loud += tokens
        else:
            self.quiet += tokens
        ahead = self.loud - self.quiet
        self.low, self.high = min(self.low, ahead), max(self.high, ahead)

    @property
    def difference(self) -> int:
        """The largest, over any part of the time."""
        return self.high - self.low


class Caller:
    def __init__(self, server: Served, service: Service, tenant: str, abuse: Abuse) -> None:
        self._port, self._key = server.port, server.keys[tenant]
        self._service, self._tenant, self._abuse = service, tenant, abuse
        self._random = random.Random(0)

    async def call_for_ever(self) -> None:
        while True:
            await self._call()

    async def _call(self) -> None:
        abuse = self._abuse
        body = as_json(
            model="mine",
            prompt=self._random.choices(range(1000, 40_000), k=abuse.prompt),
            n=abuse.copies,
            stop=stops(abuse.stop_strings),
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            stream=True,
            return_token_ids=True,
        )
        whole = request(
            "POST", COMPLETIONS, key=self._key, body=body, headers=b"connection: close\r\n"
        )
        async with connected(self._port) as connection:
            await connection.send(whole)
            status = int((await connection.reader.readline()).split()[1])
            if status == 503 and self._tenant == "loud":
                self._service.refused += 1
                await asyncio.sleep(0.05)
                return
            assert status == 200, (self._tenant, await connection.read_all())
            async for count, is_first in tokens(connection.reader):
                weighted = OUTPUT_WEIGHT * count
                self._service.add(self._tenant, weighted + is_first * PROMPT_WEIGHT * abuse.prompt)


async def tokens(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, bool]]:
    """How many tokens each event has, and whether they are the first ones of a choice."""
    seen: set[int] = set()
    last = b""
    while line := await reader.readline():
        if not line.startswith(b"data: "):
            continue
        last = line
        if b"[DONE]" in line:
            continue
        event = json.loads(line.removeprefix(b"data: "))
        for choice in event.get("choices", ()):
            if count := len(choice.get("token_ids") or ()):
                yield count, choice["index"] not in seen
                seen.add(choice["index"])
    assert b"[DONE]" in last, last


async def play(server: Served, abuse: Abuse, bound: int) -> tuple[Service, float]:
    """Both tenants ask until the quiet one was served `BOUNDS` bounds; and the seconds of it."""
    service = Service()
    loop = asyncio.get_running_loop()
    loud = Caller(server, service, "loud", abuse)
    quiet = Caller(server, service, "quiet", Abuse())
    tasks = [asyncio.ensure_future(loud.call_for_ever()) for _ in range(abuse.callers)]
    tasks += [asyncio.ensure_future(quiet.call_for_ever()) for _ in range(CALLERS)]
    try:
        while not (service.loud and service.quiet):  # from here on both have requests waiting
            await one_of(tasks, 0.01)
        service.loud = service.quiet = service.low = service.high = 0
        begun = loop.time()
        while service.quiet < BOUNDS * bound:
            await one_of(tasks, 0.05)
        return service, loop.time() - begun
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def one_of(tasks: list[asyncio.Future[None]], seconds: float) -> None:
    """Waits, and raises what a caller raised."""
    done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(demo_model(), tmp_path_factory.mktemp("shares"), EXAMPLES, OPTIONS) as server:
        server.add_tenant("loud", {"mine": EXAMPLES / "topic" / "adapter"})
        server.add_tenant("quiet", {"mine": EXAMPLES / "json" / "adapter"})
        yield server


@pytest.fixture(scope="module")
def rows() -> Iterator[list[list[object]]]:
    found: list[list[object]] = []
    yield found
    publish(
        Path(OUT) if OUT else None,
        f"One tenant at {TIMES} times the load of another, from the socket on",
        f"SmolLM2-135M, `remix serve {' '.join(OPTIONS)}`. Each tenant has {CALLERS} requests at a "
        f"time, of {PROMPT} tokens with an answer of {NEW_TOKENS}; the loud one has {TIMES} times "
        "as many of what the row says. Weighted tokens, a token of an answer for two.",
        Table(
            [
                *("times as many", "loud", "quiet", "largest difference", "bound"),
                *("loud's requests that were refused", "quiet, weighted tokens/s"),
            ],
            found,
        ),
    )


@pytest.mark.parametrize("kind", ABUSE)
async def test_ten_times_the_load_stays_within_the_bound(
    server: Served, rows: list[list[object]], kind: str
) -> None:
    abuse = ABUSE[kind]
    bound = service_bound(abuse.prompt, RUNNING * (abuse.prompt + NEW_TOKENS))
    service, seconds = await play(server, abuse, bound)
    per_second = f"{service.quiet / seconds:.0f}"
    rows.append(
        [kind, service.loud, service.quiet, service.difference, bound, service.refused, per_second]
    )
    assert service.difference <= bound
    assert service.quiet > bound, "or the bound would say nothing"
