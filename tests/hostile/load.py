"""The normal load of tenants: small closed loops of streamed chats, and a probe of /health.

All of it is one event loop and no library: it has to be cheap, since the server is on the same
cores. What was measured is kept with its time, so that windows of time can be compared.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.hostile.acts import as_json
from tests.hostile.wire import connected, request

PROBE_SECONDS = 0.25
_QUESTION = (
    "A traveller walks from one town to the next in three days. On the first day it rains, on "
    "the second the road is closed, and on the third a farmer takes the traveller along. Number "
    "{} asks you: what would you tell the traveller about the weather, the road and the farmer, "
    "so that the next journey takes only two days and nobody gets wet on the way?"
)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of the time, of `time.monotonic`."""

    start: float
    end: float


Span = tuple[float, float]
"""When something began, and the seconds it took."""


@dataclass(slots=True)
class Measured:
    first: list[Span] = field(default_factory=list)
    """From a request to its first token."""
    between: list[Span] = field(default_factory=list)
    """From a token to the next one."""
    health: list[Span] = field(default_factory=list)
    """Of probes."""
    failed: list[str] = field(default_factory=list)


def beside(found: Sequence[Span], windows: Sequence[Window]) -> list[float]:
    """The seconds of what went on in one of the windows, if only for a moment. Windows do not
    overlap and are in order, here and below."""
    starts = [each.start for each in windows]
    chosen = []
    for at, seconds in found:
        last = bisect_left(starts, at + seconds) - 1  # that began before the end of it
        if last >= 0 and at < windows[last].end:
            chosen.append(seconds)
    return chosen


def inside(found: Sequence[Span], windows: Sequence[Window], *, slack: float) -> list[float]:
    """The seconds of what began in one of the windows and ended there, or `slack` behind it."""
    starts = [each.start for each in windows]
    chosen = []
    for at, seconds in found:
        last = bisect_right(starts, at) - 1
        if last >= 0 and at < windows[last].end > at + seconds - slack:
            chosen.append(seconds)
    return chosen


class Load:
    """`loops` requests at a time of each tenant, by its key, through its adapter."""

    def __init__(
        self, port: int, keys: Mapping[str, str], *, model: str, loops: int, max_tokens: int
    ) -> None:
        self.measured = Measured()
        self._port = port
        self._keys = keys
        self._model = model
        self._loops = loops
        self._max_tokens = max_tokens
        self._sent = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(self._probe())]
        for key in self._keys.values():
            tasks += [asyncio.ensure_future(self._loop(key)) for _ in range(self._loops)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for error in ended:
            if not isinstance(error, asyncio.CancelledError):
                raise RuntimeError("a loop of the load ended") from (
                    error if isinstance(error, BaseException) else None
                )

    async def _loop(self, key: str) -> None:
        while True:
            self._sent += 1
            await self._ask(key, self._sent)

    async def _ask(self, key: str, number: int) -> None:
        body = as_json(
            model=self._model,
            messages=[{"role": "user", "content": _QUESTION.format(number)}],
            max_tokens=self._max_tokens,
            ignore_eos=True,
            temperature=0,
            stream=True,
        )
        whole = request(
            "POST",
            "/v1/chat/completions",
            key=key,
            body=body,
            headers=b"connection: close\r\n",
        )
        try:
            async with connected(self._port) as connection:
                sent = time.monotonic()
                await connection.send(whole)
                status = await connection.reader.readline()
                before, last = None, b""
                while line := await connection.reader.readline():
                    if not line.startswith(b"data: "):
                        continue
                    last, now = line, time.monotonic()
                    if b'"content":"' not in line or b'"content":""' in line:
                        continue
                    if before is None:
                        self.measured.first.append((sent, now - sent))
                    else:
                        self.measured.between.append((before, now - before))
                    before = now
        except OSError as error:
            self.measured.failed.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
            return
        if b" 200 " not in status or b"[DONE]" not in last:
            self.measured.failed.append(f"{status!r}, ends in {last[:300]!r}")
            await asyncio.sleep(0.1)

    async def _probe(self) -> None:
        """As a liveness probe does it: a connection for each look."""
        whole = request("GET", "/health", headers=b"connection: close\r\n")
        while True:
            sent = time.monotonic()
            try:
                async with connected(self._port) as connection:
                    answer = await connection.exchange(whole)
            except OSError as error:
                answer = str(error).encode()
            self.measured.health.append((sent, time.monotonic() - sent))
            if b" 200 " not in answer:
                self.measured.failed.append(f"/health: {answer[:200]!r}")
            await asyncio.sleep(PROBE_SECONDS)
