"""The faults: each holds from its begin to its end, in places drawn at random, and says which
failures of requests it may be the reason of."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError

from remix_runtime.engines.embedded import EmbeddedEngine
from remix_runtime.engines.text import TextStream
from server.tenancy import records
from tests.unit.admin.test_damage import DAMAGES, GONE

if TYPE_CHECKING:
    from tests.hostile.faults.trial import Trial

INTERNAL, DIRECTORY, DISK = "internal_error", "directory_unavailable", "store_full"
"""Reasons; a damaged adapter's is its digest."""

Fault = Callable[["Trial", random.Random], AbstractAsyncContextManager[None]]

_HARMS = {name: DAMAGES[name] for name in DAMAGES if "parity" not in name} | GONE
del _HARMS["another adapter"]  # of another base


@asynccontextmanager
async def failing_engine(trial: Trial, chance: random.Random) -> AsyncIterator[None]:
    """Tokens that become no text: each fails one sequence. In the embedded engine whole steps fail
    too, and adapters that the device does not take."""
    rate = chance.choice((0.01, 0.05, 0.2))
    own = random.Random(chance.random())  # in the engine's thread

    def failing(function: Callable[..., Any], rate: float) -> Callable[..., Any]:
        def attempt(*args: Any, **kwargs: Any) -> Any:
            if own.random() < rate:
                trial.injected += 1
                raise RuntimeError("injected")
            return function(*args, **kwargs)

        return attempt

    with trial.excused(INTERNAL), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextStream, "push", failing(TextStream.push, rate))
        engine = trial.server.engine
        if isinstance(engine, EmbeddedEngine):
            core = engine._thread.running_core()
            run, failed_before = core.runner.run, False

            def failing_run(chunks: Any, *args: Any, **kwargs: Any) -> Any:
                nonlocal failed_before
                failed_before = not failed_before and own.random() < rate
                if failed_before:  # three in a row are the engine's end
                    trial.injected += len(chunks)
                    raise RuntimeError("injected")
                return run(chunks, *args, **kwargs)

            patch.setattr(core.runner, "run", failing_run)
            table = next(t for name, t in core.bank._tables.items() if "up_proj" in name)
            patch.setattr(table, "set", failing(table.set, rate))
        yield


@asynccontextmanager
async def database_away(trial: Trial, chance: random.Random) -> AsyncIterator[None]:
    """It goes and comes back, by tables that are renamed or a folder; known keys stay good for
    long, or for the blink of an eye."""
    access = trial.access
    grace, short = access._grace_seconds, chance.random() < 0.3
    take, give_back = chance.choice((_tables, _folder))(trial)

    async def go_and_come(ending: asyncio.Event) -> None:
        while not ending.is_set():
            await take()
            access._grace_seconds = 0.1 if short else grace
            await _pause(ending, chance.uniform(0.05, 0.6))
            await give_back()
            await _until_confirmed(trial)
            access._grace_seconds = grace
            await _pause(ending, chance.uniform(0.05, 0.6))

    with trial.excused(DIRECTORY):
        async with _meanwhile(go_and_come):
            yield


async def _until_confirmed(trial: Trial) -> None:
    back, follower = time.monotonic(), trial.access._follower
    await trial.until(lambda: follower._confirmed >= back, "the directory is back")


Steps = tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]


def _tables(trial: Trial) -> Steps:
    def rename(end: str) -> None:
        other = sqlite3.connect(trial.database, timeout=60)
        try:
            other.execute("PRAGMA legacy_alter_table = ON")
            for table in ("audit", "api_keys"):
                before, after = (table, f"{table}_away") if end else (f"{table}_away", table)
                other.execute(f"ALTER TABLE {before} RENAME TO {after}")
        finally:
            other.close()

    async def take() -> None:
        await asyncio.to_thread(rename, "_away")

    async def give_back() -> None:
        await asyncio.to_thread(rename, "")

    return take, give_back


def _folder(trial: Trial) -> Steps:
    folder = trial.database.parent
    away = folder.with_name("away")

    async def take() -> None:
        folder.rename(away)
        trial.database_is_away = True

    async def give_back() -> None:
        trial.database_is_away = False
        away.rename(folder)

    return take, give_back


@asynccontextmanager
async def full_disk(trial: Trial, chance: random.Random) -> AsyncIterator[None]:
    """Of the store and the database; now and then something small still fits."""
    own = random.Random(chance.random())
    store = str(trial.store._root)

    def guarded(method: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
        def attempt(path: Path, *args: Any, **kwargs: Any) -> Any:
            if writes(*args, **kwargs) and str(path).startswith(store) and own.random() < 0.7:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return method(path, *args, **kwargs)

        return attempt

    with trial.excused(DISK), pytest.MonkeyPatch.context() as patch:
        opens = lambda mode="r", *_, **__: mode[0] in "wax"  # noqa: E731
        for name, writes in (
            ("open", opens),
            ("mkdir", lambda *_, **__: True),
            ("touch", lambda *_, **__: True),
            ("rename", lambda *_: True),
        ):
            patch.setattr(Path, name, guarded(getattr(Path, name), writes))
        trial.disk_is_full = True
        yield
        trial.disk_is_full = False


def prepare_database(trial: Trial) -> None:
    """Has SQLite's own limit stop the database from growing while the disk is full, and open
    connections break while it is away."""
    engine = trial.directory._database.engine.sync_engine

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        pages = 1 if trial.disk_is_full else 1 << 30
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

    @event.listens_for(engine, "checkout")
    def checkout(*_: object) -> None:
        if trial.database_is_away:
            raise DisconnectionError("injected")


@asynccontextmanager
async def damaged_adapters(trial: Trial, chance: random.Random) -> AsyncIterator[None]:
    """Files in the store change, are cut or gone, while they are served."""

    async def damage(ending: asyncio.Event) -> None:
        while not ending.is_set():
            digest = chance.choice(list(trial.sources))
            trial.damaged.add(digest)
            trial.excuse(digest)
            with suppress(OSError):  # it is damaged already, or the disk is full
                chance.choice(list(_HARMS.values()))(trial.store._adapters / digest)
            await _pause(ending, chance.uniform(0.01, 0.5))

    async with _meanwhile(damage):
        yield


@asynccontextmanager
async def jumping_clock(trial: Trial, chance: random.Random) -> AsyncIterator[None]:
    """The wall clock, by a second to ten years; meanwhile garbage is collected by it."""
    ahead = 0.0
    now, now_ns = time.time, time.time_ns

    class Jumped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = UTC) -> datetime:
            return datetime.now(tz) + timedelta(seconds=ahead)

    async def jump(ending: asyncio.Event) -> None:
        nonlocal ahead
        while not ending.is_set():
            size = chance.choice((1.0, 60.0, 3600.0, 86_400.0, 3e8))
            ahead = chance.choice((-1, 1)) * size
            await _pause(ending, chance.uniform(0.01, 0.3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + ahead)
        patch.setattr(time, "time_ns", lambda: now_ns() + int(ahead * 1e9))
        patch.setattr(records, "datetime", Jumped)
        async with _meanwhile(jump):
            yield


FAULTS: tuple[Fault, ...] = (
    failing_engine,
    database_away,
    full_disk,
    damaged_adapters,
    jumping_clock,
)


@asynccontextmanager
async def _meanwhile(
    work: Callable[[asyncio.Event], Coroutine[Any, Any, None]],
) -> AsyncIterator[None]:
    """Does `work`, which ends, what it has done undone, when it is told to."""
    ending = asyncio.Event()
    task = asyncio.create_task(work(ending))
    try:
        yield
    finally:
        ending.set()
        await task


async def _pause(ending: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(ending.wait(), seconds)
