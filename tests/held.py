"""Requests that are held half-way: the server has let them in, and waits for their bodies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

PATIENCE = 120


@dataclass
class Held:
    """One request on a connection of its own, or a further one on the same. Its body is sent when
    the test wants it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    body: bytes = b""
    status: int = 0
    """100 once the server has begun to read the body: then the request is let in."""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port))

    async def begin(
        self, path: str, body: dict[str, Any], key: str | None = None, *, padding: int = 0
    ) -> int:
        """Sends the head and waits for a status: 100, or the answer's. A small body is read of
        requests too that are refused."""
        self.body = json.dumps(body).encode() + b" " * padding
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            f"Content-Length: {len(self.body)}",
            "Expect: 100-continue",
            *([f"Authorization: Bearer {key}"] if key else []),
        ]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        await self._read_head()
        return self.status

    def send(self, start: int = 0, end: int | None = None) -> None:
        self.writer.write(self.body[start:end])

    async def finish(self) -> str:
        """The whole answer's body; fails where it ends before its end."""
        async with asyncio.timeout(PATIENCE):
            if self.status == 100:
                await self._read_head()
            if "content-length" in self.headers:
                size = int(self.headers["content-length"])
                return (await self.reader.readexactly(size)).decode()
            whole = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                whole += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
            return whole.decode()

    async def _read_head(self) -> None:
        async with asyncio.timeout(PATIENCE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
