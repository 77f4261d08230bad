"""One thread for all: whose job is next, how many wait, what becomes of those who leave."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from remix_runtime.errors import EngineBusyError
from remix_runtime.fairness.worker import FairWorker


class Held:
    """A worker whose jobs are written down, after the first one was let go."""

    def __init__(self, places: int) -> None:
        self.worker = FairWorker("test", places=places, what="jobs")
        self.gate = threading.Event()
        self.began = threading.Event()
        self.log: list[str] = []

    def first(self) -> None:
        self.began.set()
        self.gate.wait(60)

    def job(self, name: str) -> Callable[[], str]:
        def work() -> str:
            self.log.append(name)
            return name

        return work


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held(places=10)
    yield made
    made.gate.set()
    made.worker.close()


async def test_a_tenant_with_many_jobs_does_not_hold_up_another(held: Held) -> None:
    held.worker.submit("loud", held.first)
    loud = [held.worker.submit("loud", held.job(f"loud{i}")) for i in range(9)]
    quiet = asyncio.create_task(held.worker.run("quiet", held.job("quiet")))
    await asyncio.sleep(0)
    held.gate.set()
    assert await quiet == "quiet"
    assert held.log.index("quiet") <= 1
    await asyncio.gather(*map(asyncio.wrap_future, loud))
    assert held.log[-1] == "loud8", "in order of arrival inside a tenant"


async def test_it_costs_a_tenant_the_time_that_its_jobs_took(held: Held) -> None:
    """After one long job of the one come many short ones of the other."""

    def work() -> None:
        sum(range(2_000_000))
        held.log.append("long")

    held.worker.submit("", held.first)
    jobs: list[Future[Any]] = [
        held.worker.submit("a", work),
        held.worker.submit("a", held.job("a")),
    ]
    jobs += [held.worker.submit("b", held.job("b")) for _ in range(6)]
    held.gate.set()
    await asyncio.gather(*map(asyncio.wrap_future, jobs))
    assert held.log == ["long", *"bbbbbb", "a"]


async def test_a_tenant_that_fills_the_queue_is_refused_by_itself_only(held: Held) -> None:
    held.worker.submit("loud", held.first)
    for i in range(9):
        held.worker.submit("loud", held.job(f"loud{i}"))
    with pytest.raises(EngineBusyError, match="10 of your jobs"):
        await held.worker.run("loud", held.job("one too many"))
    quiet = [held.worker.submit("quiet", held.job(f"quiet{i}")) for i in range(5)]
    held.gate.set()
    await asyncio.gather(*map(asyncio.wrap_future, quiet))
    assert await held.worker.run("loud", held.job("again")) == "again"


async def test_who_leaves_takes_its_job_and_its_place_along(held: Held) -> None:
    held.worker.submit("a", held.first)
    left = [asyncio.create_task(held.worker.run("a", held.job("left"))) for _ in range(9)]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    more = [held.worker.submit("a", held.job("more")) for _ in range(9)]
    held.gate.set()
    await asyncio.gather(*map(asyncio.wrap_future, more))
    assert held.log == ["more"] * 9


async def test_an_error_is_its_jobs_alone_and_the_end_cancels_what_waits(held: Held) -> None:
    with pytest.raises(ZeroDivisionError):
        await held.worker.run("a", lambda: 1 // 0)
    working = held.worker.submit("a", held.first)
    waiting = held.worker.submit("a", held.job("waiting"))
    held.began.wait(60)
    held.worker.close()
    assert waiting.cancelled()
    assert not held.worker.is_idle
    held.gate.set()
    await asyncio.wrap_future(working)
    assert held.log == []
