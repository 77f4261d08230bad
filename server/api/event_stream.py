"""Server-sent events on their way to one client, with comments while there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from starlette.types import Send

from remix_runtime.turn import Turn
from server.api.writer import Event
from server.http.slices import in_slices
from server.live.quotas import Admission

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_COMMENT = b": waiting\n\n"


class EventStream:
    """The status is sent with the first events, or with the first comment: after `silence` seconds
    without an event, and again after each such time. 0: no comments.

    Proxies cut connections that are silent for a minute, which a queue or a long prompt may take.
    """

    def __init__(
        self, send: Send, admission: Admission, silence: float, *, has_started: bool = False
    ) -> None:
        self._started = has_started
        self._send = in_slices(send)
        self._admission = admission
        self._silence = silence
        self._written = asyncio.get_running_loop().time()
        self._one_at_a_time = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None
        """Until the comments begin: most streams end before."""
        self._comments: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._silence:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._silence, self._start_comments)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_comments()

    async def has_started(self) -> bool:
        """Whether the client has a status, so that a failure can only be told as an event."""
        async with self._one_at_a_time:  # a comment may be about to be the first
            return self._started

    async def write(self, events: Iterable[Event]) -> None:
        written: list[bytes] = []
        turn = Turn()
        for event in events:
            written.append(event.encode())
            await turn.end_if_long()
        await self.write_bytes(b"".join(written))

    async def end(self, body: bytes) -> None:
        """Writes the last events, in one piece with the end: each piece wakes the client."""
        await self._stop_comments()
        async with self._one_at_a_time:
            await self._start()
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def write_bytes(self, body: bytes) -> None:
        async with self._one_at_a_time:
            await self._start()
            if body:
                self._written = asyncio.get_running_loop().time()
                await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _start(self) -> None:
        if not self._started:
            limits = self._admission.headers.items()
            headers = [(name.encode(), text.encode()) for name, text in limits]
            start = {"type": "http.response.start", "status": 200}
            await self._send({**start, "headers": [*_HEADERS, *headers]})
            self._started = True

    def _start_comments(self) -> None:
        self._comments = asyncio.create_task(self._comment())

    async def _comment(self) -> None:
        while True:
            wait = self._written + self._silence - asyncio.get_running_loop().time()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                await self.write_bytes(_COMMENT)

    async def _stop_comments(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._comments is not None:
            self._comments.cancel()
            await asyncio.gather(self._comments, return_exceptions=True)
            self._comments = None
