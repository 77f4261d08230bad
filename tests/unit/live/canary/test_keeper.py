"""The task that keeps canaries: killed, failing and hanging, it is seen in time and well again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from remix_runtime.watch import TELL_SECONDS, Watch
from server.live import canary_keeper
from server.live.canary_keeper import CANARIES_TASK, DUE_SECONDS, LOOK_SECONDS, CanaryKeeper
from tests.clocks import FakeClock
from tests.unit.live.test_watched import Trouble, kill


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_the_keeper_comes_back(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_keeper, "REPORT_SECONDS", 0.0)
    nobody: Any = SimpleNamespace(canaries=SimpleNamespace(all=()))
    keeper: Any = CanaryKeeper(nobody, nobody, nobody, nobody, nobody)
    clock = FakeClock()
    watch = Watch(clock)
    keeper.start(watch)
    exchanges = 0
    exchange = keeper._exchange

    async def counted() -> None:
        nonlocal exchanges
        await exchange()
        exchanges += 1

    monkeypatch.setattr(keeper, "_exchange", counted)
    await clock.advance(3 * LOOK_SECONDS)
    assert exchanges > 2
    if trouble == "killed":
        kill("CanaryKeeper._keep")
    else:
        with monkeypatch.context() as patch:
            Trouble(patch, keeper, "_exchange", trouble)
            await clock.advance(DUE_SECONDS + 3 * TELL_SECONDS)
            assert watch.failing == (CANARIES_TASK,)
    before = exchanges
    await clock.advance(DUE_SECONDS + 3 * TELL_SECONDS)
    assert exchanges > before
    assert watch.failing == ()
    await keeper.stop()
    await watch.stop()
