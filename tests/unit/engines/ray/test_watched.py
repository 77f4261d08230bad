"""The task that asks Ray's replicas for their stats: killed, failing and hanging. Needs no Ray."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from remix_runtime.contracts import ModelInfo
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.engines.front import STALL_SECONDS
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.engine import REPORT_SECONDS, REPORT_TASK, RayEngine
from remix_runtime.watch import TELL_SECONDS, Watch
from tests.clocks import FakeClock
from tests.unit.live.test_watched import kill


@dataclass
class StubCluster:
    model: ModelInfo = field(
        default_factory=lambda: ModelInfo(
            name="m", max_model_len=64, vocab_size=9, eos_token_ids=(), max_requests=4
        )
    )
    trouble: str | None = None
    asked: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> StubCluster:
        return self

    async def stop(self) -> None:
        pass

    async def reports(self) -> list[Any]:
        if self.trouble == "failing":
            raise OSError("a node is away")
        if self.trouble == "hanging":
            await self.may_answer.wait()
        self.asked += 1
        return []


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_the_replicas_are_asked_again(trouble: str) -> None:
    clock, cluster = FakeClock(), StubCluster()
    engine: Any = RayEngine(RayConfig(engine_of="fake"), FakeConfig())
    engine._cluster, engine._watch = cluster, Watch(clock)
    await engine.start()
    await clock.advance(3 * REPORT_SECONDS)
    assert cluster.asked > 2
    if trouble == "killed":
        kill("RayEngine._ask_for_ever")
        await clock.advance(TELL_SECONDS)
    else:
        cluster.trouble = trouble
        await clock.advance(2 * STALL_SECONDS + 3 * TELL_SECONDS)
        assert engine._watch.failing == (REPORT_TASK,)
        cluster.trouble = None
        cluster.may_answer.set()
    before = cluster.asked
    await clock.advance(10 * TELL_SECONDS)
    assert cluster.asked > before
    assert engine._watch.failing == ()
    await engine.stop()
