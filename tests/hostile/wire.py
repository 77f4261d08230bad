"""HTTP by hand, for clients that must do what no library would. Standard library only."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_KEPT = 8 << 20
"""Of an answer, the bytes that are looked at."""
_ERROR = re.compile(rb'data: (\{"(?:error|type": "error|type":"error)".*)')


def request(
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: bytes | None = None,
    headers: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """A whole request. `headers`: more of them, each with its line's end. `path` may have what no
    path has."""
    lines = [f"{method} {path} HTTP/{version}\r\n".encode("latin-1"), headers]
    if b"host:" not in headers:
        lines.append(b"host: localhost\r\n")
    if key is not None:
        lines.append(b"authorization: Bearer " + key.encode() + b"\r\n")
    if body is not None:
        if b"content-type:" not in headers:
            lines.append(b"content-type: application/json\r\n")
        lines.append(b"content-length: %d\r\n" % len(body))
    return b"".join([*lines, b"\r\n", body or b""])


@dataclass(slots=True)
class Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """As much as the server takes: it may answer and close before it has all."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def read_all(self) -> bytes:
        """What comes until the server closes, its begin and its end where it is long."""
        first, last = bytearray(), b""
        with suppress(ConnectionError):
            while data := await self.reader.read(1 << 18):
                if len(first) < _KEPT:
                    first += data
                else:
                    last = data
        return bytes(first) + last

    async def count(self, mark: bytes) -> int:
        """How often `mark` is in what comes until the server closes."""
        found, end = 0, b""
        with suppress(ConnectionError):
            while data := await self.reader.read(1 << 18):
                text = end + data
                found += text.count(mark)
                end = text[1 - len(mark) :]
        return found

    async def exchange(self, data: bytes) -> bytes:
        """Sends and reads at the same time: what is refused early is answered before it is sent."""
        reading = asyncio.ensure_future(self.read_all())
        await self.send(data)
        return await reading

    async def read_some(self, count: int) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await self.reader.readexactly(count)

    def reset(self) -> None:
        """Closes so that the server's next write fails."""
        with suppress(OSError):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    @property
    def socket(self) -> socket.socket:
        found: socket.socket = self.writer.get_extra_info("socket")
        return found


@asynccontextmanager
async def connected(port: int, *, receive_bytes: int | None = None) -> AsyncIterator[Connection]:
    """`receive_bytes`: how much the kernel takes for a client that does not read."""
    made = socket.socket()
    try:
        if receive_bytes is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, ("127.0.0.1", port))
        limit = 1 << 16 if receive_bytes is None else 1 << 10
        reader, writer = await asyncio.open_connection(sock=made, limit=limit)
    except BaseException:
        made.close()
        raise
    connection = Connection(reader, writer)
    try:
        yield connection
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def outcome(answer: bytes) -> str:
    """How a request ended: `200`, `400 invalid_json`, `400 invalid_value at stop`, `closed` where
    no answer came, `200, cut` where it broke off, `200, error busy` where a stream said so."""
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    parts = head.split(b" ", 2)
    if len(parts) < 2 or not parts[1].isdigit():
        return "closed"
    status, lower = parts[1].decode(), head.lower()
    if b"\r\ncontent-length: " in lower:
        length = int(lower.split(b"\r\ncontent-length: ")[1].split(b"\r\n")[0])
        if len(body) < min(length, _KEPT):
            return f"{status}, cut"
        body = body[:length]
    elif b"\r\ntransfer-encoding: chunked" in lower and not body.endswith(b"0\r\n\r\n"):
        return f"{status}, cut"
    if status == "200":
        error = _ERROR.search(body)
        return f"200, error {_told(error[1])}" if error else "200"
    return f"{status} {_told(body)}".rstrip()


def _told(body: bytes) -> str:
    """The code of an error and the field it names, in OpenAI's or Anthropic's shape."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return ""
    told = str(error.get("code") or ("" if error.get("param") else error.get("type", "")))
    return f"{told} at {error['param']}".strip() if error.get("param") else told
