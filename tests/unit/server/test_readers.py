"""Clients that do not read what they asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from server.api.streaming import until_disconnect
from server.http.connection import BoundedConnection, ConnectionLimits, Door
from tests.unit.server.connections import GET, PATIENCE, App, connected, served


class EndlessApp(App):
    """Its answer has no end."""

    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                body = b"x" * (1 << 20)
                await send({"type": "http.response.body", "body": body, "more_body": True})
                await asyncio.sleep(0)  # once it is told that the client has gone it waits no more

        await until_disconnect(receive, answer())
        self.ended.set()


async def test_who_reads_nothing_is_cut_off() -> None:
    app = EndlessApp()
    async with served(app, reader_seconds=0.05) as (port, door), connected(port) as client:
        await client.send(GET)
        async with asyncio.timeout(PATIENCE):
            await app.ended.wait()
        assert not door.open


class Clock:
    """Stands for the event loop."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self, seconds, call))
        return self.timers[-1]


class Timer:
    def __init__(self, clock: Clock, seconds: float, call: Callable[[], None]) -> None:
        self._clock, self.seconds, self.call = clock, seconds, call

    def cancel(self) -> None:
        if self in self._clock.timers:
            self._clock.timers.remove(self)


class Wire(asyncio.Transport):
    """A transport that holds `waiting` bytes for its client."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def is_closing(self) -> bool:
        return self.aborted

    def abort(self) -> None:
        self.aborted = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def connection(clock: Clock, wire: Wire) -> BoundedConnection:
    config = uvicorn.Config(App(), lifespan="off", log_level="critical")
    config.load()
    loop: Any = clock
    door = Door(ConnectionLimits(connections=9, reader_seconds=30))
    made = BoundedConnection(config, ServerState(), {}, loop, door=door)
    made.connection_made(wire)
    clock.timers.clear()
    return made


def let_time_pass(clock: Clock) -> None:
    (timer,) = clock.timers
    assert timer.seconds == 30
    clock.timers.clear()
    timer.call()


def test_who_reads_slowly_goes_on(connection: BoundedConnection, clock: Clock, wire: Wire) -> None:
    wire.waiting = 100_000
    connection.pause_writing()
    for left in (99_999, 70_000, 69_000):
        wire.waiting = left
        let_time_pass(clock)
        assert not wire.aborted
    connection.resume_writing()
    assert clock.timers == []
    wire.waiting = 100_000
    connection.pause_writing()
    let_time_pass(clock)
    assert wire.aborted


def test_nobody_looks_after_a_lost_connection(
    connection: BoundedConnection, clock: Clock, wire: Wire
) -> None:
    wire.waiting = 100_000
    connection.pause_writing()
    connection.connection_lost(OSError())
    assert clock.timers == []
