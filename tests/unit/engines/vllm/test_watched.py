"""The task that asks the workers for the load of experts: killed, failing and hanging."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.engines.vllm import engine as engine_module
from remix_runtime.engines.vllm.engine import LOAD_ANSWER_SECONDS, LOAD_SECONDS, LOAD_TASK
from remix_runtime.errors import EngineDeadError
from remix_runtime.watch import TELL_SECONDS, Watch
from tests.clocks import FakeClock
from tests.unit.engines.vllm.stub import StubBackend, started


def kill() -> None:
    (task,) = (
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "__qualname__", "") == "VllmEngine._watch_load"
    )
    task.cancel()


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_the_load_of_experts_is_asked_again(
    trouble: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, asked, may_answer = FakeClock(), 0, asyncio.Event()
    monkeypatch.setattr(engine_module, "Watch", lambda: Watch(clock))
    engine, _ = await started(base)
    how: str | None = trouble

    async def on_workers(self: StubBackend, method: str, *args: Any) -> list[Any]:
        nonlocal asked
        asked += 1
        if how == "failing":
            raise OSError("a worker's pipe is broken")
        if how == "hanging":
            await may_answer.wait()
        return [{}]

    monkeypatch.setattr(StubBackend, "on_workers", on_workers)
    await clock.advance(10 * LOAD_SECONDS)
    assert (asked, engine.health().failing) == (0, ())  # nobody uses an adapter
    engine._num_admitted = 1
    await clock.advance(LOAD_SECONDS)
    assert asked == 1
    if trouble == "killed":
        kill()
        await clock.advance(TELL_SECONDS)
    else:
        limit = LOAD_ANSWER_SECONDS if trouble == "hanging" else TELL_SECONDS
        await clock.advance(limit)
        health = engine.health()
        assert (health.alive, health.ready, health.failing) == (True, True, (LOAD_TASK,))
    how = None
    may_answer.set()
    await clock.advance(LOAD_ANSWER_SECONDS)
    assert (asked > 1, engine.health().failing) == (True, ())
    asked, engine._num_admitted = 0, 2
    await clock.advance(LOAD_SECONDS)
    assert asked == 1
    await engine.stop()


async def test_a_dead_engine_is_not_asked_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(engine_module, "Watch", lambda: Watch(clock))
    engine, backend = await started(base)
    backend.die()
    engine._num_admitted = 1
    with pytest.raises(EngineDeadError):
        await backend.on_workers("remix_expert_load")
    await clock.advance(LOAD_SECONDS)
    await clock.advance(3600)
    health = engine.health()
    assert (health.alive, health.failing) == (False, ())
    await engine.stop()
