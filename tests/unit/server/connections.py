"""One connection with an app behind it, and limits of the test's own."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send

from server.http.connection import BoundedConnection, ConnectionLimits, Door

NEVER = 1e6
PATIENCE = 60.0
"""Of the tests. Where it ends, the connection hangs."""

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


def post(length: int) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % length


class App:
    """Reads the whole body and answers with its length."""

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.begun = asyncio.Event()
        self.left = asyncio.Event()
        """Set where the client is told to have gone."""
        self.asked: list[tuple[str, list[bytes]]] = []
        """Paths, and the names of the headers as they are when the body is whole."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.begun.set()
        await self.may_read.wait()
        length, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left.set()
                return
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        self.asked.append((scope["path"], [name for name, _ in scope["headers"]]))
        await self.may_answer.wait()
        body = str(length).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(app: App, **limits: Any) -> AsyncIterator[tuple[int, Door]]:
    given = {"connections": 100, "head_seconds": NEVER, "body_seconds": NEVER, **limits}
    door = Door(ConnectionLimits(**given))
    protocol: Any = partial(BoundedConnection, door=door)
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_level="critical",
        timeout_keep_alive=int(NEVER),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1], door
        finally:
            server.should_exit = server.force_exit = True
            await serving


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # the server may have closed
            self._writer.write(data)
            await self._writer.drain()

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer."""
        async with asyncio.timeout(PATIENCE):
            head = await self._reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            return int(head.split()[1]), await self._reader.readexactly(length)

    async def refusal(self) -> tuple[int, str]:
        """The status and the code of an error after which the connection is closed."""
        status, body = await self.answer()
        assert await self.end() == b""
        return status, json.loads(body)["error"]["code"]

    async def end(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(PATIENCE):
            with suppress(ConnectionError):
                return await self._reader.read()
            return b""

    def close(self) -> None:
        self._writer.close()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    try:
        yield client
    finally:
        client.close()
