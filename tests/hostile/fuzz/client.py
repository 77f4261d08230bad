"""Sends bytes to a socket and reads all answers, until nothing moves any more."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import h11

from tests.hostile.fuzz.target import Asked, Ends, Target

PATIENCE = 60.0
"""Seconds. What has not come to an end then, hangs."""
_POLL_SECONDS = 0.005
_MOST_AT_ONCE = 0.1
"""Seconds that count between two looks: this process may have been stopped."""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Outcome:
    answers: list[Answer]
    asked: list[Asked]
    """What the app saw."""
    seconds: float
    """From the first byte that was sent until all was answered that can be."""
    fault: str | None = None
    """What hangs, or is no HTTP."""


def converse(target: Target, port: int, pieces: Sequence[bytes]) -> Outcome:
    """Sends the pieces, each as soon as the one before it was read. At the end the client leaves;
    what it began and did not end must be over then, too."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        ends = (port, client.getsockname()[1])
        try:
            return _Talk(target, client, ends).run(pieces)
        finally:
            target.record.forget(ends)


class _Patience:
    def __init__(self) -> None:
        self._looked = time.monotonic()
        self._waited = 0.0

    @property
    def is_over(self) -> bool:
        now = time.monotonic()
        self._waited += min(now - self._looked, _MOST_AT_ONCE)
        self._looked = now
        return self._waited > PATIENCE


class _Talk:
    def __init__(self, target: Target, client: socket.socket, ends: Ends) -> None:
        self._target, self._client = target, client
        self._connection = target.record.of(ends)
        self._began = time.monotonic()
        self._came = bytearray()
        self._is_closed = False
        """By the server."""

    def run(self, pieces: Sequence[bytes]) -> Outcome:
        self._client.setblocking(False)
        sent, fault = 0, None
        for piece in pieces:
            sent += self._send(piece)
            if not self._settles(sent):
                fault = "hangs: neither an answer nor an end"
                break
        seconds = time.monotonic() - self._began
        asked, (answers, no_http) = self._now()
        with suppress(OSError):  # the server may have closed
            self._client.shutdown(socket.SHUT_WR)
        if not fault and not self._ends():
            fault = "hangs: goes on when its client has left"
        return Outcome(answers, asked, seconds, fault or no_http)

    def _now(self) -> tuple[list[Asked], tuple[list[Answer], str | None]]:
        asked = [replace(item) for item in self._connection.asked]
        return asked, _answers_of(bytes(self._came), asked)

    def _send(self, piece: bytes) -> int:
        """How much the server took."""
        left = memoryview(piece)
        patience = _Patience()
        while left and not self._is_closed and not patience.is_over:
            try:
                left = left[self._client.send(left) :]
            except BlockingIOError:
                self._read()
            except OSError:
                break
        return len(piece) - len(left)

    def _read(self) -> None:
        """Waits a little for what comes."""
        if self._is_closed:
            time.sleep(_POLL_SECONDS)
            return
        readable, _, _ = select.select([self._client], [], [], _POLL_SECONDS)
        with suppress(BlockingIOError):
            while readable:
                try:
                    data = self._client.recv(1 << 18)
                except ConnectionError:
                    data = b""
                if not data:
                    self._is_closed = True
                    return
                self._came += data

    def _settles(self, sent: int) -> bool:
        """Whether all comes to a stand: everything is read, and everything is answered or waits for
        more of its body."""
        connection, patience = self._connection, _Patience()
        while not patience.is_over:
            changes, came = connection.changes, len(self._came)
            self._target.pass_turns()
            all_read = connection.received >= sent or connection.is_lost or self._is_closed
            still = all_read and connection.is_still and changes == connection.changes
            if not still:
                self._read()
                continue
            with suppress(BlockingIOError, ConnectionError):
                while data := self._client.recv(1 << 18):
                    self._came += data
                self._is_closed = True
            # What a socket was given may be a moment on its way.
            if len(self._came) == came and (self._is_closed or self._is_answered()):
                return True
        return False

    def _is_answered(self) -> bool:
        asked, (answers, _) = self._now()
        return len(answers) == sum(not item.waits for item in asked)

    def _ends(self) -> bool:
        connection, patience = self._connection, _Patience()
        while not patience.is_over:
            self._read()
            if connection.is_lost and all(asked.is_over for asked in connection.asked):
                return True
        return False


def _answers_of(came: bytes, asked: Sequence[Asked]) -> tuple[list[Answer], str | None]:
    """The answers, one for each request that is over, and one of the connection itself."""
    reader = h11.Connection(h11.CLIENT)
    if came:  # nothing would mean the end to it
        reader.receive_data(came)
    answers: list[Answer] = []
    methods = [item.method for item in asked if not item.waits]
    try:
        for method in (*methods, "GET"):
            answer = _next_answer(reader, method)
            if answer is None:
                break
            answers.append(answer)
            if reader.their_state is not h11.DONE:
                break
            reader.start_next_cycle()
    except h11.ProtocolError as error:
        return answers, f"what came is no HTTP: {error}: {came[-300:]!r}"
    rest, _ = reader.trailing_data
    return answers, f"more came than answers: {rest[:300]!r}" if rest else None


def _next_answer(reader: h11.Connection, method: str) -> Answer | None:
    reader.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    reader.send(h11.EndOfMessage())
    head: h11.Response | None = None
    body = bytearray()
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers
            }
            return Answer(head.status_code, headers, bytes(body))
        elif not isinstance(event, h11.InformationalResponse):
            return None  # there is no more
