"""What other processes do to a database: race each other, and die at a chosen moment."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

from sqlalchemy import event

from server.tenancy import Directory
from server.tenancy.errors import StaleRevisionError
from tests.unit.tenancy.samples import digest


def race_puts(url: str, adapter: str, rounds: int, start: Barrier, wins: Queue[Any]) -> None:
    """In every round, puts a set of its own on the revision that all racers expect."""

    async def race() -> None:
        directory = await Directory.open(url)
        for expected in range(rounds):
            start.wait()
            with suppress(StaleRevisionError):
                adapters = {f"{adapter}{expected}": digest(adapter)}
                await directory.put_set("acme", adapters, expected=expected, actor=adapter)
                wins.put((expected, adapter))
        await directory.close()

    asyncio.run(race())


def race_open(urls: list[str], start: Barrier) -> None:
    """Opens databases at the same moment as others do."""

    async def race() -> None:
        for url in urls:
            start.wait()
            directory = await Directory.open(url)
            await directory.close()

    asyncio.run(race())


def call_and_die(url: str, step: int, method: str, *args: Any, **kwargs: Any) -> None:
    """Calls a method of the directory and kills this process at its `step`-th moment: before and
    after each statement, before the commit, after the return."""

    async def call() -> None:
        directory = await Directory.open(url)
        moments = itertools.count(1)

        def die(*_: object) -> None:
            if next(moments) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        engine = directory._database.engine.sync_engine
        for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, moment, die)
        await getattr(directory, method)(*args, **kwargs)
        die()
        await directory.close()

    asyncio.run(call())


def put_for_ever(url: str, running: Any, told: Connection) -> None:
    """Puts one set after the other until killed; every other one is a rollback. Tells each revision
    that it was told is written."""

    async def put() -> None:
        directory = await Directory.open(url)
        running.set()
        while True:
            for name in "ab":
                put = await directory.put_set(
                    "acme", {name: digest(name)}, expected=None, actor="x"
                )
                told.send(put.revision)
                back = await directory.rollback_set("acme", 0, expected=None, actor="x")
                told.send(back.revision)

    asyncio.run(put())


def announce_tenant(url: str, tenant: str) -> None:
    """Makes one change."""

    async def create() -> None:
        directory = await Directory.open(url)
        await directory.create_tenant(tenant, actor="other process")
        await directory.close()

    asyncio.run(create())


def lock_sqlite(path: str, lock: str, held: Any, release: Any) -> None:
    """Takes a lock and keeps it until told."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(lock)
    connection.execute("SELECT count(*) FROM tenants")
    held.set()
    release.wait()
    connection.close()
