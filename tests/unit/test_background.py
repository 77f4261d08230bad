"""Work that goes on without its caller: its failure is told once, by whoever hears of it."""

from __future__ import annotations

import asyncio
import logging

import pytest

from remix_runtime.background import BackgroundTasks

log = logging.getLogger("test.background")


async def failing(gate: asyncio.Event) -> None:
    await gate.wait()
    raise ValueError("broken")


@pytest.mark.parametrize("waiting", [0, 1, 2])
@pytest.mark.parametrize("leaving", [0, 1])
async def test_a_failure_is_logged_if_and_only_if_nobody_waits_for_it(
    waiting: int, leaving: int, caplog: pytest.LogCaptureFixture
) -> None:
    tasks, gate = BackgroundTasks(log, "counting"), asyncio.Event()
    task = tasks.start(failing(gate))
    callers = [asyncio.create_task(tasks.result(task)) for _ in range(waiting + leaving)]
    await asyncio.sleep(0)
    for caller in callers[waiting:]:
        caller.cancel()
    await asyncio.sleep(0)
    with caplog.at_level("INFO", logger=log.name):
        gate.set()
        await tasks.settle()
        ended = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(error) for error in ended[:waiting]] == [ValueError] * waiting
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ([] if waiting else ["counting failed: broken"])


async def test_the_result_and_what_has_ended_before() -> None:
    tasks = BackgroundTasks(log, "counting")
    task = tasks.start(asyncio.sleep(0, 7))
    assert await tasks.result(task) == 7
    assert await tasks.result(task) == 7
    await tasks.settle()
