"""Measures turns of the event loop, and asks an app without a client's own work in them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI

from remix_runtime.contracts import PositionLogprobs, TokenLogprob
from remix_runtime.engines.fake import FakeConfig, FakeEngine, _Job
from server.runner import without_long_collections
from tests.unit.server.harness import BASE

LONGEST_TURN = 0.05
"""Seconds of the process's CPU time that may pass until everybody had a turn."""
_TRIES = 5
LARGEST_MESSAGE = 8 << 20
"""Bytes that a server is given to send at once: each copy of them takes a millisecond or more."""

_LETTER = 65


async def longest_turn(work: Callable[[], Awaitable[None]]) -> float:
    """The most CPU time of this process between two turns of a task that always wants one, while
    `work` is done. Not only the loop's own: a thread that keeps the interpreter stops it too.

    CPU time, as a busy machine must not count; what the system adds when it takes the core away at
    the wrong moment, it does not add each time, so the best of some tries counts.
    """
    best = float("inf")
    for _ in range(_TRIES):
        with without_long_collections() as settle:
            settle()
            working = asyncio.ensure_future(work())
            longest, before = 0.0, time.process_time()
            while not working.done():
                await asyncio.sleep(0)
                now = time.process_time()
                longest, before = max(longest, now - before), now
        await working
        best = min(best, longest)
        if best <= LONGEST_TURN:
            break
    return best


async def ask(
    app: FastAPI,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    query: bytes = b"",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    may_send: asyncio.Event | None = None,
) -> tuple[int, int]:
    """The status of an answer and its bytes. `may_send`: when its client begins to read."""
    status = size = largest = 0
    told = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if told:
            return told.pop()
        await asyncio.Future()
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status, size, largest
        if may_send is not None:
            await may_send.wait()
        status = message.get("status", status)
        size += len(message.get("body", b""))
        largest = max(largest, len(message.get("body", b"")))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json"), *headers],
        "server": ("test", 80),
        "client": ("test", 1),
        "state": {},
    }
    await app(scope, receive, send)
    assert largest <= LARGEST_MESSAGE
    return status, size


def as_body(**fields: Any) -> bytes:
    return json.dumps({"model": BASE, **fields}, ensure_ascii=False).encode()


class TellingEngine(FakeEngine):
    """Answers in letters to the last token, and tells as much of them as it is asked for, which
    costs it nothing."""

    def __init__(self) -> None:
        super().__init__(FakeConfig(served_model_name=BASE, max_model_len=1 << 15, max_running=128))
        self.has_told = asyncio.Event()
        """Set when there is no request any more."""

    async def _run(self, job: _Job) -> None:
        params = job.request.params
        if params.prompt_logprobs is not None:
            told = [_position(params.prompt_logprobs)] * (len(job.request.prompt_token_ids) - 1)
            job.completion.prompt_scored([None, *told])
        if not params.max_tokens:
            self._send(job, job.completion.take(()))
        positions = None if params.logprobs is None else (_position(params.logprobs),)
        for number in range(params.max_tokens):
            if number % 8 == 0:
                await asyncio.sleep(0)
            if not self._is_open(job):
                return
            self._send(job, job.completion.take((_LETTER,), positions))
        if not self._streams:
            self.has_told.set()


def _position(count: int) -> PositionLogprobs:
    top = tuple(TokenLogprob(token_id=_LETTER + i, logprob=-0.5 - i) for i in range(count))
    return PositionLogprobs(chosen=TokenLogprob(token_id=_LETTER, logprob=-0.5), top=top)
