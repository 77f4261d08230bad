"""What a hostile client does, once, and how that ended. Standard library only."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.hostile.wire import connected, outcome, request

MINE = "mine"
"""The name of the hostile tenant's adapter."""
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
COUNT, TOKENIZE, DETOKENIZE = "/v1/messages/count_tokens", "/tokenize", "/detokenize"

CLOSE = b"connection: close\r\n"
LEFT = "left"
"""The client went away itself."""
UNREAD_SECONDS = 36.0
"""A little more than a client may take nothing of its answer."""


@dataclass(frozen=True, slots=True)
class Hostile:
    """The server, and the hostile tenant's key on it."""

    port: int
    key: str


Act = Callable[[Hostile, int], Awaitable[str]]
"""Takes the number of the try, since some send something new each time."""
Body = bytes | Callable[[int], bytes]
Part = bytes | float
"""What is sent, or the seconds of a pause."""

TURNED_AWAY = (
    "429 rate_limit_exceeded",
    "503 busy",
    "429 rate_limit_error",
    "503 overloaded_error",
)
"""How requests of a tenant that already has all it may have can end, whatever they are."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One kind of hostile client."""

    name: str
    """What it sends."""
    act: Act
    ends: str
    """How it ends; at least one of the tries must."""
    may: tuple[str, ...] = ()
    """How others of the tries may, besides `TURNED_AWAY`."""
    clients: int = 4
    """At once. Four is what the hostile tenant's quota lets run."""


def as_json(**fields: Any) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def chat(content: str = "Say something.", **fields: Any) -> bytes:
    """A chat's body, with an answer of one token unless `fields` say more."""
    messages = [{"role": "user", "content": content}]
    return as_json(**{"model": MINE, "messages": messages, "max_tokens": 1, **fields})


def completion(prompt: Any = "Say something.", **fields: Any) -> bytes:
    return as_json(**{"model": MINE, "prompt": prompt, "max_tokens": 1, **fields})


def field(name: str, value: bytes) -> bytes:
    """A completion's body with a field whose JSON is given."""
    return b'{"model":"mine","prompt":"x","max_tokens":1,"%s":%s}' % (name.encode(), value)


def post(path: str, body: Body, *, headers: bytes = b"", method: str = "POST") -> Act:
    """Sends a request with the tenant's key and reads the answer to its end."""

    async def act(hostile: Hostile, number: int) -> str:
        sent = body if isinstance(body, bytes) else body(number)
        more = headers + CLOSE
        whole = request(method, path, key=hostile.key, body=sent, headers=more)
        async with connected(hostile.port) as connection:
            return outcome(await connection.exchange(whole))

    return act


def get(path: str, *, with_key: bool = True, headers: bytes = b"", method: str = "GET") -> Act:
    """`{}` in the path is the number of the try."""

    async def act(hostile: Hostile, number: int) -> str:
        key = hostile.key if with_key else None
        more = headers + CLOSE
        where = path.replace("{}", str(number))
        async with connected(hostile.port) as connection:
            await connection.send(request(method, where, key=key, headers=more))
            return outcome(await connection.read_all())

    return act


def raw(*parts: Part | Callable[[Hostile], bytes]) -> Act:
    """Sends bytes as they are, with pauses, and reads until the server closes."""

    async def act(hostile: Hostile, number: int) -> str:
        async with connected(hostile.port) as connection:
            reading = asyncio.ensure_future(connection.read_all())
            for part in parts:
                if isinstance(part, float):
                    await asyncio.wait({reading}, timeout=part)
                elif not reading.done():
                    await connection.send(part if isinstance(part, bytes) else part(hostile))
            return outcome(await reading)

    return act


def drip(path: str, length: int, *, every: float) -> Act:
    """Announces a body and sends a byte of it now and then."""

    async def act(hostile: Hostile, number: int) -> str:
        head = request("POST", path, key=hostile.key, headers=announced(length))
        async with connected(hostile.port) as connection:
            reading = asyncio.ensure_future(connection.read_all())
            await connection.send(head + b"{")
            while not reading.done():
                await connection.send(b" ")
                await asyncio.wait({reading}, timeout=every)
            return outcome(reading.result())

    return act


def announced(length: int) -> bytes:
    """The headers of a body that comes later, or never."""
    return b"content-type: application/json\r\ncontent-length: %d\r\n" % length


def leave(path: str, body: Body, *, after: int = 0, seconds: float = 0.0) -> Act:
    """Goes away after so many bytes of the answer, or so long after it has sent the request. With
    `after` -1 it goes a byte later each time."""

    async def act(hostile: Hostile, number: int) -> str:
        sent = body if isinstance(body, bytes) else body(number)
        async with connected(hostile.port) as connection:
            whole = request("POST", path, key=hostile.key, body=sent, headers=CLOSE)
            await connection.send(whole)
            await asyncio.sleep(seconds)
            await connection.read_some(number % 2000 if after < 0 else after)
            connection.reset()
        return LEFT

    return act


def cut(path: str, body: bytes) -> Act:
    """Sends a byte more of a request each time, and goes away."""

    async def act(hostile: Hostile, number: int) -> str:
        whole = request("POST", path, key=hostile.key, body=body)
        async with connected(hostile.port) as connection:
            await connection.send(whole[: number % len(whole)])
            connection.reset()
        return LEFT

    return act


def unread(path: str, body: bytes) -> Act:
    """Asks, and does not read before the server should have given it up. What the kernel holds for
    a client may be all of the answer."""

    async def act(hostile: Hostile, number: int) -> str:
        whole = request("POST", path, key=hostile.key, body=body, headers=CLOSE)
        async with connected(hostile.port, receive_bytes=4096) as connection:
            await connection.send(whole)
            await asyncio.sleep(UNREAD_SECONDS)
            return outcome(await connection.read_all())

    return act


def unread_pipeline(make: Callable[[Hostile], bytes], *, times: int) -> Act:
    """Asks for more than the kernel holds for a client, and does not read it."""

    async def act(hostile: Hostile, number: int) -> str:
        async with connected(hostile.port, receive_bytes=4096) as connection:
            await connection.send(make(hostile) * times)
            await asyncio.sleep(UNREAD_SECONDS)
            answers = await connection.count(b"HTTP/1.1 200 ")
        return "cut" if answers < times else "all"

    return act


def slowly(path: str, body: bytes, *, every: float, size: int, most: int) -> Act:
    """Reads a little now and then, `most` bytes in all, and goes away."""

    async def act(hostile: Hostile, number: int) -> str:
        whole = request("POST", path, key=hostile.key, body=body, headers=CLOSE)
        async with connected(hostile.port, receive_bytes=4096) as connection:
            await connection.send(whole)
            for _ in range(most // size):
                await connection.read_some(size)
                await asyncio.sleep(every)
            connection.reset()
        return LEFT

    return act


def pipeline(*requests: Callable[[Hostile], bytes], times: int) -> Act:
    """Sends requests behind each other without a look at the answers; how many came."""

    async def act(hostile: Hostile, number: int) -> str:
        made = [make(hostile) for make in requests]
        last = request("GET", "/health", headers=CLOSE)
        async with connected(hostile.port) as connection:
            counting = asyncio.ensure_future(connection.count(b"HTTP/1.1 "))
            await connection.send(b"".join(made * times) + last)
            found = await counting
        return f"{found} answers"

    return act


def hold(count: int) -> Act:
    """Opens connections, asks nothing, and waits until all are closed."""

    async def one(port: int) -> str:
        async with connected(port) as connection:
            return outcome(await connection.read_all())

    async def act(hostile: Hostile, number: int) -> str:
        ended = await asyncio.gather(*(one(hostile.port) for _ in range(count)))
        return ", ".join(sorted(set(ended)))

    return act


def reconnect(count: int) -> Act:
    """Opens connections and goes away, one after the other."""

    async def act(hostile: Hostile, number: int) -> str:
        for _ in range(count):
            async with connected(hostile.port) as connection:
                connection.reset()
        return LEFT

    return act


def guess(make: Callable[[int], bytes], count: int, path: str = "/v1/models") -> Act:
    """Tries keys, many on one connection. `make` gives the header's line of the n-th."""
    numbers = itertools.count()

    async def act(hostile: Hostile, number: int) -> str:
        heads = [
            request("GET", path, headers=make(next(numbers)) + b"\r\n") for _ in range(count - 1)
        ]
        last = make(next(numbers)) + b"\r\nconnection: close\r\n"
        ended = set()
        async with connected(hostile.port) as connection:
            for head in (*heads, request("GET", path, headers=last)):
                await connection.send(head)
                status = await connection.reader.readuntil(b"\r\n\r\n")
                length = int(status.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                ended.add(outcome(status + await connection.reader.readexactly(length)))
        return ", ".join(sorted(ended))

    return act
