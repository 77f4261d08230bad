"""A watched task that is killed, fails or hangs is told once, tried again with growing pauses, seen
within the stated time, and well again by itself."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.errors import RemixError
from remix_runtime.watch import (
    CALM_SECONDS,
    LAST_PAUSE_SECONDS,
    TELL_SECONDS,
    Watch,
    Watched,
)
from tests.clocks import FakeClock, settle

ROOT = Path(__file__).parents[2]
STARTERS = {"create_task", "ensure_future", "TaskGroup", "Thread", "Timer", "Process", "Popen"}
UNWATCHED = {
    "remix_runtime/watch.py": "the watch itself",
    "remix_runtime/background.py": "ends with its work, and whoever waits hears of a failure",
    "remix_runtime/engines/embedded/thread.py": "the engine: Health.alive tells of it",
    "remix_runtime/barriers.py": "threads; they go on by themselves",
    "remix_runtime/engines/fake.py": "one request",
    "remix_runtime/engines/ray/engine.py": "one request",
    "remix_runtime/engines/ray/replica.py": "one request",
    "remix_runtime/engines/vllm/engine.py": "one request",
    "remix_runtime/engines/vllm/backend.py": "one call, which ends or is given up",
    "remix_runtime/adapter/examination.py": "one examination, which ends or is killed",
    "server/admin/routes/adapters.py": "one request",
    "server/api/event_stream.py": "one request",
    "server/api/fanout.py": "one request",
    "server/api/streaming.py": "one request",
    "server/metrics.py": "one scrape, whose error those get who wait for it",
    "server/tracing.py": "the end of the exporter's thread, which is given up after 3 s",
    "server/runner.py": "the drain, at the end of the process",
}
"""Why these need no watch."""

DUE = 40.0
EVERY = 10.0


class Sick:
    """Work that beats every `EVERY` seconds while it is well. `trouble` is called in every
    round."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.starts: list[float] = []
        self.rounds = 0
        self.trouble: Callable[[], Coroutine[Any, Any, bool]] | None = None
        self.running: asyncio.Task[Any] | None = None

    async def work(self, task: Watched) -> None:
        self.starts.append(self.clock.now)
        self.running = asyncio.current_task()
        while True:
            if self.trouble is not None and await self.trouble():
                return
            self.rounds += 1
            await task.rest(EVERY)


async def raises() -> bool:
    raise OSError("the disk is gone")


async def refuses() -> bool:
    raise RemixError("not now")


async def hangs() -> bool:
    await asyncio.Event().wait()
    return False


async def ends() -> bool:
    return True


async def is_killed() -> bool:
    """By somebody who is not the watch."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)
    return False


TROUBLES = [raises, refuses, hangs, ends, is_killed]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def watch(clock: FakeClock) -> AsyncIterator[Watch]:
    watch = Watch(clock)
    yield watch
    await watch.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
def sick(clock: FakeClock) -> Sick:
    return Sick(clock)


@pytest.fixture
async def task(watch: Watch, sick: Sick) -> Watched:
    task = watch.start("counting", sick.work, what="counting sheep", due_seconds=DUE)
    await settle()
    return task


def logged(caplog: pytest.LogCaptureFixture, level: str = "ERROR") -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == level]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_does_not_work_is_told_once_seen_in_time_and_recovers(
    trouble: Callable[[], Coroutine[Any, Any, bool]],
    task: Watched,
    sick: Sick,
    watch: Watch,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await clock.advance(3 * EVERY)
    assert (sick.rounds, len(sick.starts)) == (4, 1)
    sick.trouble = trouble
    await clock.advance(EVERY)  # it meets its trouble
    silent = DUE if trouble is hangs else 0.0
    if silent < TELL_SECONDS:
        await clock.advance(TELL_SECONDS - 1)
        assert watch.failing == ()
        await clock.advance(1)
    else:
        await clock.advance(silent - EVERY - 1)
        assert watch.failing == ()
        await clock.advance(EVERY + 1)
    assert watch.failing == ("counting",)
    await clock.advance(3600)
    assert watch.failing == ("counting",)
    assert len(sick.starts) > 20
    (line,) = logged(caplog)
    assert line.startswith("counting sheep fails")

    sick.trouble = None
    rounds = sick.rounds
    await clock.advance(LAST_PAUSE_SECONDS + silent)
    assert sick.rounds > rounds
    assert watch.failing == ()
    assert not task.is_failing


def pauses_between(starts: list[float]) -> list[float]:
    return [later - sooner for sooner, later in pairwise(starts)]


async def test_pauses_grow_to_their_limit_and_begin_anew_after_calm(
    task: Watched, sick: Sick, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    del task
    sick.trouble = raises
    await clock.advance(EVERY + 300)
    assert pauses_between(sick.starts) == [EVERY + 1, 2, 4, 8, 16, 32, 60, 60, 60]
    sick.trouble = None
    await clock.advance(LAST_PAUSE_SECONDS + CALM_SECONDS + EVERY)
    sick.trouble, before = raises, len(sick.starts)
    await clock.advance(EVERY + 7)
    assert pauses_between(sick.starts[before:]) == [2, 4]
    assert len(logged(caplog)) == 2


async def test_one_that_works_and_fails_by_turns_is_no_news_each_time(
    watch: Watch, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    starts = 0

    async def work(task: Watched) -> None:
        nonlocal starts
        starts += 1
        task.beat()
        raise OSError("again")

    watch.start("flapping", work, what="flapping", due_seconds=DUE)
    await clock.advance(3600)
    assert starts < 100
    assert len(logged(caplog)) == 1


async def test_another_kind_of_failure_is_told_too(
    task: Watched, sick: Sick, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    del task
    sick.trouble = raises
    await clock.advance(60)
    sick.trouble = refuses
    await clock.advance(600)
    assert [line.rpartition(": ")[2] for line in logged(caplog)] == ["the disk is gone", "not now"]
    tracebacks = [bool(record.exc_info) for record in caplog.records if record.levelname == "ERROR"]
    assert tracebacks == [True, False]  # of what nobody expects


async def test_a_task_that_cannot_be_cancelled_is_seen_and_runs_once(
    watch: Watch, clock: FakeClock
) -> None:
    may_go_on, starts = asyncio.Event(), 0

    async def work(task: Watched) -> None:
        nonlocal starts
        starts += 1
        while not may_go_on.is_set():
            try:
                await may_go_on.wait()
            except asyncio.CancelledError:
                continue
        await task.rest(EVERY)

    task = watch.start("stuck", work, what="being stuck", due_seconds=DUE)
    await clock.advance(3600)
    assert (watch.failing, starts) == (("stuck",), 1)
    may_go_on.set()
    await settle()
    assert (watch.failing, starts) == ((), 1)
    task.cancel()


async def test_a_process_that_was_stopped_is_no_task_that_hangs(
    task: Watched, sick: Sick, watch: Watch, clock: FakeClock
) -> None:
    """As on a machine that slept: all times are over, and nobody could give a sign."""
    del task
    clock.jump(3600)
    await clock.advance(EVERY)
    assert (len(sick.starts), watch.failing) == (1, ())
    assert sick.rounds > 1


async def test_work_that_ends_is_forgotten(watch: Watch, clock: FakeClock) -> None:
    tries = 0

    async def work(task: Watched) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError("not yet")

    watch.start("load", work, what="loading", due_seconds=DUE, ends=True)
    await clock.advance(3600)
    assert (tries, watch.failing) == (3, ())


@pytest.mark.parametrize("trouble", [None, *TROUBLES])
async def test_what_is_stopped_stays_so(
    trouble: Callable[[], Coroutine[Any, Any, bool]] | None,
    task: Watched,
    sick: Sick,
    watch: Watch,
    clock: FakeClock,
) -> None:
    sick.trouble = trouble
    await clock.advance(100)
    starts = len(sick.starts)
    task.cancel()
    await clock.advance(3600)
    assert (len(sick.starts), watch.failing) == (starts, ())
    await task.stop()


async def test_names_are_told_once_each(watch: Watch, clock: FakeClock) -> None:
    async def fail(task: Watched) -> None:
        raise OSError

    for name in ("b", "a", "b"):
        watch.start(name, fail, what=name, due_seconds=DUE)
    await clock.advance(TELL_SECONDS)
    assert watch.failing == ("a", "b")


def test_no_long_lived_task_is_started_beside_the_watch() -> None:
    """Whoever starts one elsewhere watches it, or says here why not."""
    found = set()
    for room in ("server", "remix_runtime"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                called = node.func if isinstance(node, ast.Call) else None
                if getattr(called, "attr", getattr(called, "id", None)) in STARTERS:
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == UNWATCHED.keys()
