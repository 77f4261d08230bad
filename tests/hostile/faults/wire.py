"""One connection to the server, byte by byte: where its client cuts it, and all that comes back."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Self


class CutError(Exception):
    """The client has cut the connection, as it was to."""


class ClosedError(Exception):
    """The server closed the connection before the end of an answer."""


class MalformedError(Exception):
    """What came is no answer."""


class HungError(Exception):
    """An answer neither came to an end nor was the connection closed."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return self.headers.get("connection") == "close"


class Wire:
    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._unread = bytearray()
        self.left: int | None = None
        """Bytes that are read before the client cuts."""

    @classmethod
    async def open(cls, address: tuple[str, int]) -> Self:
        made = socket.socket()
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
        except BaseException:
            made.close()
            raise
        return cls(made)

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the server has refused it: the answer says why
            await self._loop.sock_sendall(self._socket, data)

    def end_sending(self) -> None:
        with suppress(OSError):  # the server was first
            self._socket.shutdown(socket.SHUT_WR)

    async def answer(self) -> Answer:
        """The next one. Raises `CutError`, `ClosedError`, `MalformedError`."""
        head = await self._until(b"\r\n\r\n")
        try:
            first, *lines = head.decode("ascii").split("\r\n")
            version, status, _ = first.split(" ", 2)
            pairs = [line.split(": ", 1) for line in lines]
            headers = {name.lower(): value for name, value in pairs}
            if version != "HTTP/1.1" or len(headers) != len(pairs):
                raise ValueError(first)
            if headers.get("transfer-encoding") == "chunked":
                body = await self._chunks()
            else:
                body = await self._exactly(int(headers["content-length"]))
        except (ValueError, KeyError) as error:
            raise MalformedError(f"{head[:200]!r}: {error!r}") from error
        return Answer(int(status), headers, body)

    def unasked(self) -> bytes | None:
        """What came that belongs to no request. None: nothing; empty: the server closed."""
        if self._unread:
            return bytes(self._unread)
        try:
            return self._socket.recv(4096)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""

    def close(self, *, by_reset: bool = False) -> None:
        if by_reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._until(b"\r\n"), 16):
            parts.append(await self._exactly(size))
            await self._line_end()
        await self._line_end()
        return b"".join(parts)

    async def _line_end(self) -> None:
        if await self._exactly(2) != b"\r\n":
            raise ValueError("a chunk longer than it says")

    async def _until(self, end: bytes) -> bytes:
        searched = 0
        while (at := self._unread.find(end, searched)) < 0:
            searched = max(0, len(self._unread) - len(end))
            await self._read_more()
        found = bytes(self._unread[:at])
        del self._unread[: at + len(end)]
        return found

    async def _exactly(self, count: int) -> bytes:
        while len(self._unread) < count:
            await self._read_more()
        found = bytes(self._unread[:count])
        del self._unread[:count]
        return found

    async def _read_more(self) -> None:
        most = 1 << 16 if self.left is None else min(self.left, 1 << 16)
        if not most:
            raise CutError
        try:
            data = await self._loop.sock_recv(self._socket, most)
        except ConnectionError:
            data = b""
        if not data:
            raise ClosedError
        if self.left is not None:
            self.left -= len(data)
        self._unread += data
