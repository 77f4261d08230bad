"""The bounds of a connection: how much may come before there is a request to answer, how long that
may take, and how many connections there are.

uvicorn has a time limit for connections that are idle between two requests, and none of these.
"""

from __future__ import annotations

import asyncio
from array import array
from asyncio import TimerHandle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus
from socket import SO_ERROR, SOL_SOCKET
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.http.errors import ApiError

_LINGERING_SECONDS = 1.0
_LINGERING_BYTES = 1 << 20
"""For how long, and how much, a refused client may go on sending before it reads why."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one connection may do."""

    connections: int
    """Open at once. One more takes the place of the one that has waited longest for a request."""
    head_bytes: int = 64 << 10
    headers: int = 128
    head_seconds: float = 10.0
    """From the connection, or a request's first byte, to the end of its headers."""
    body_bytes: int = 16 << 10
    body_seconds: float = 15.0
    """A body brings `body_bytes` in every `body_seconds`, or ends."""
    reader_seconds: float = 30.0
    """A client that takes nothing of what waits for it for so long is cut off."""


@dataclass(slots=True)
class Door:
    """All connections of one server."""

    limits: ConnectionLimits
    open: set[BoundedConnection] = field(default_factory=set)
    waiting: dict[BoundedConnection, None] = field(default_factory=dict)
    """Those without a request, or with a part of one's head; who has waited longest comes first."""


class _Phase(Enum):
    HEAD = auto()
    """No request yet, or a part of its headers."""
    BODY = auto()
    BETWEEN = auto()
    """The request is whole; another one may come. uvicorn has a limit for this."""


class _RefusedError(Exception):
    """Ends the parser's work; the reason is the connection's."""


class _Parser(httptools.HttpRequestParser):
    """Reads on where a request asks for another protocol, as if it did not: there is none.

    httptools takes such a request for ended with its headers. What came with them it throws away,
    and what comes later it takes for a request, were it the body that the headers tell of.
    """

    def __init__(self, connection: BoundedConnection) -> None:
        super().__init__(connection)
        self._connection = connection

    def feed_data(self, data: bytes | bytearray | memoryview | array[int]) -> None:
        while data:
            try:
                super().feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                with self._connection.same_request() as framing:
                    super().feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")


class BoundedConnection(HttpToolsProtocol):
    """uvicorn's protocol within the limits of a `Door`."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        door: Door,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.parser = _Parser(self)
        # As uvicorn: the request before the one that is too many is still answered.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._door = door
        self._limits = door.limits
        self._phase = _Phase.HEAD
        self._timed: _Phase | None = None
        """What the running timer is for."""
        self._timer: TimerHandle | None = None
        self._unread = 0
        """Bytes that came since the parser last had something whole."""
        self._head_bytes = 0
        self._num_headers = 0
        self._num_hosts = 0
        self._framing = b""
        """The headers that tell where the body ends."""
        self._is_same_request = False
        """What is parsed is no request of its own, but brings the parser to a request's body."""
        self._body_bytes = 0
        self._refusal: ApiError | None = None
        self._unsent = 0
        """Bytes that waited for the client when it was last looked at."""
        self._reader_timer: TimerHandle | None = None
        self._is_refused = False
        """It was told so, and what still comes is thrown away."""

    # -- the transport's calls ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if _has_failed(transport):  # where many come and go, most go before it is their turn
            transport.abort()
            return
        self._door.open.add(self)
        waiting = self._door.waiting
        if len(self._door.open) > self._limits.connections:
            if not waiting:
                transport.write(_as_http(_too_many()))
                transport.close()
                return
            longest = next(iter(waiting))
            del waiting[longest]
            self._door.open.discard(longest)
            longest.transport.abort()
        waiting[self] = None
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_reader_timer()
        self._door.open.discard(self)
        self._door.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        if self._is_refused:
            if self._unread > _LINGERING_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        self._look()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_reader_timer()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_reader_timer()
        super().resume_writing()

    def _watch_reader(self) -> None:
        self._unsent = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(self._limits.reader_seconds, self._look_at_reader)

    def _look_at_reader(self) -> None:
        if self.transport.get_write_buffer_size() < self._unsent:
            self._watch_reader()
        else:  # the answer ends as if the client had gone
            self.transport.abort()

    def _stop_reader_timer(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _look(self) -> None:
        """What came may have been the wrong thing, too much, or the begin of a phase."""
        if self._is_refused:
            return
        if self.transport.is_closing():
            self._stop_timer()
            return
        if self._phase is _Phase.BETWEEN and self.cycle.response_complete:
            # Something came, and be it a line's end: uvicorn's limit for idle connections is off.
            self._phase = _Phase.HEAD
            self._door.waiting.setdefault(self, None)
        if self._unread > self._limits.head_bytes:
            self._refuse(_head_too_large(f"more than {self._limits.head_bytes} bytes"))
        else:
            self._set_timer()

    # -- the parser's calls ---------------------------------------------------------------------

    @contextmanager
    def same_request(self) -> Iterator[bytes]:
        """While this is open, a head with the headers that it yields stands for the newest one."""
        self._is_same_request = True
        try:
            yield self._framing
        finally:
            self._is_same_request = False

    def on_message_begin(self) -> None:
        if self._is_same_request:
            return
        self._phase = _Phase.HEAD
        self._head_bytes = self._num_headers = self._num_hosts = 0
        self._framing = b""
        self._door.waiting.setdefault(self, None)
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._is_same_request:
            return
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_same_request:
            return
        self._num_headers += 1
        self._count_head(len(name) + len(value))
        # Those after a body in chunks come here too, and are no headers of the request: a proxy
        # that took a key or a host out of these, or put its own in, has not seen them.
        if self._phase is _Phase.HEAD:
            lower = name.lower()
            if lower in (b"content-length", b"transfer-encoding"):
                self._framing += name + b": " + value + b"\r\n"
            self._num_hosts += lower == b"host"
            super().on_header(name, value)

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self._limits.head_bytes:
            self._refusal = _head_too_large(f"more than {self._limits.head_bytes} bytes")
        elif self._num_headers > self._limits.headers:
            self._refusal = _head_too_large(f"more than {self._limits.headers} headers")
        if self._refusal is not None:
            raise _RefusedError

    def on_headers_complete(self) -> None:
        if self._is_same_request:
            return
        # RFC 9112, section 3.2: of two, a proxy and we might each believe another one.
        least = 0 if self.parser.get_http_version() in ("0.9", "1.0") else 1
        if not least <= self._num_hosts <= 1:
            message = f"found {self._num_hosts} Host headers, expected one"
            self._refusal = ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_http")
            raise _RefusedError
        super().on_headers_complete()  # fails where the target is none: then there is no request
        self._phase = _Phase.BODY
        self._unread = self._body_bytes = 0
        self._door.waiting.pop(self, None)

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # its body comes yet
        self._phase = _Phase.BETWEEN
        self._unread = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._phase is _Phase.BODY:  # of a request behind this one: now it is read
            self._stop_timer()
            self._set_timer()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._door.waiting.setdefault(self, None)

    def send_400_response(self, msg: str) -> None:
        """What does not parse; uvicorn calls it."""
        refusal = self._refusal
        if refusal is None:
            message = "what was sent is not an HTTP request"
            refusal = ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_http")
        self._refuse(refusal)

    # -- time -----------------------------------------------------------------------------------

    def _set_timer(self) -> None:
        """One timer for each phase that waits for the client, from its first byte on."""
        if self._phase is self._timed:
            return
        self._stop_timer()
        seconds = {
            _Phase.HEAD: self._limits.head_seconds,
            _Phase.BODY: self._limits.body_seconds,
        }.get(self._phase)
        if seconds is not None:
            self._timed = self._phase
            self._timer = self.loop.call_later(seconds, self._on_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timed = None

    def _on_time(self) -> None:
        self._stop_timer()
        in_time = self._phase is _Phase.BODY and self._body_bytes >= self._limits.body_bytes
        # Where reading is paused, or another request is answered first, the app takes its time.
        if in_time or self.flow.read_paused or self.pipeline:
            self._body_bytes = 0
            self._set_timer()
        elif self._phase is _Phase.HEAD and not self._unread:
            self.transport.close()  # nothing was ever asked
        else:
            self._refuse(_too_slow())

    # -- the end --------------------------------------------------------------------------------

    def _refuse(self, error: ApiError) -> None:
        """Says why, where that is not taken for an earlier request's answer, and closes."""
        self._stop_timer()
        self._door.waiting.pop(self, None)
        cycle = self.cycle
        if self._phase is _Phase.BODY:
            is_next = not cycle.response_started and not self.pipeline
        else:
            is_next = cycle is None or cycle.response_complete
        if not is_next:
            self.transport.close()
            return
        answer = _as_http(error)
        if self._phase is _Phase.BODY:
            if self.scope["method"] == "HEAD":
                answer = answer[: answer.index(b"\r\n\r\n") + 4]
            cycle.disconnected = True
            cycle.waiting_for_100_continue = False  # or uvicorn would write that behind our end
            cycle.message_event.set()
        self.transport.write(answer)
        # Closed at once with bytes unread, the kernel would throw away the answer, too.
        self._is_refused, self._unread = True, 0
        self.flow.resume_reading()
        self.transport.write_eof()
        self._timer = self.loop.call_later(_LINGERING_SECONDS, self.transport.abort)


def _has_failed(transport: asyncio.Transport) -> bool:
    """Whether the client has reset its connection. What it sent is still there, and costs what a
    request costs."""
    connection = transport.get_extra_info("socket")
    return connection is not None and connection.getsockopt(SOL_SOCKET, SO_ERROR) != 0


def _as_http(error: ApiError) -> bytes:
    body = error.body.model_dump_json().encode()
    head = [
        f"HTTP/1.1 {error.status_code} {HTTPStatus(error.status_code).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
        *(f"{name}: {value}" for name, value in (error.headers or {}).items()),
    ]
    return "\r\n".join(head).encode("ascii") + b"\r\n\r\n" + body


def _head_too_large(found: str) -> ApiError:
    message = f"the request's line and headers are {found}"
    return ApiError(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message, code="request_header_fields_too_large"
    )


def _too_slow() -> ApiError:
    message = "the request did not come in time"
    return ApiError(HTTPStatus.REQUEST_TIMEOUT, message, code="request_timeout")


def _too_many() -> ApiError:
    return ApiError(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server has as many connections as it may have",
        code="too_many_connections",
        headers={"Retry-After": "1"},
    )
