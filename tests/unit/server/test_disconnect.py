"""Work for a client, which ends when the client leaves."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from server.api.streaming import until_disconnect


class Client:
    """`receive` says that it left, once `leaves` is set."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()

    async def __call__(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}


async def test_work_is_done() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0)
        done.append("all")

    assert await until_disconnect(Client(), work())
    assert done == ["all"]


async def test_a_client_leaves() -> None:
    client, cleaned = Client(), asyncio.Event()

    async def work() -> None:
        client.leaves.set()
        try:
            await asyncio.Future()
        finally:
            await asyncio.sleep(0)
            cleaned.set()

    assert not await until_disconnect(client, work())
    assert cleaned.is_set()
    await asyncio.sleep(0)  # what was cancelled is over: this task goes on


async def test_a_client_leaves_at_the_end() -> None:
    client = Client()

    async def work() -> None:
        await asyncio.sleep(0)  # the client is watched
        client.leaves.set()

    assert await until_disconnect(client, work())
    await asyncio.sleep(0)


async def test_a_client_sends_more() -> None:
    told: list[Message] = [{"type": "http.request", "body": b"more", "more_body": False}]
    client, is_read = Client(), asyncio.Event()

    async def receive() -> Message:
        if told:
            return told.pop()
        is_read.set()
        return await client()

    assert await until_disconnect(receive, _wait(is_read))


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


@pytest.mark.parametrize("error", [TimeoutError, ValueError])
async def test_work_fails(error: type[Exception]) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise error("of its own")

    with pytest.raises(error, match="of its own"):
        await until_disconnect(Client(), work())


async def test_the_server_cancels_it() -> None:
    cleaned, forever = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await forever.wait()
        finally:
            cleaned.set()

    working = asyncio.ensure_future(until_disconnect(Client(), work()))
    await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert cleaned.is_set()
