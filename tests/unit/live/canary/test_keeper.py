"""The tasks that keep canaries and load them: killed, failing and hanging, they are seen in time
and well again."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from remix_runtime.watch import LAST_PAUSE_SECONDS, TELL_SECONDS, Watch
from server.live import canary_keeper
from server.live.canary.running import RunningCanary
from server.live.canary_keeper import (
    CANARIES_TASK,
    DUE_SECONDS,
    LOADS_TASK,
    LOOK_SECONDS,
    CanaryKeeper,
)
from server.live.follower import LOAD_SECONDS
from server.store import StoreError
from server.tenancy.canary_rows import Canary, CanaryRules
from server.tenancy.errors import DatabaseUnavailableError
from tests.clocks import FakeClock
from tests.unit.live.test_watched import Trouble, kill


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_the_keeper_comes_back(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_keeper, "REPORT_SECONDS", 0.0)
    nobody: Any = SimpleNamespace(canaries=SimpleNamespace(all=()))
    clock = FakeClock()
    watch = Watch(clock)
    keeper: Any = CanaryKeeper(nobody, nobody, nobody, nobody, nobody, watch)
    keeper.start()
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


class Canaries:
    """One that runs, and its adapter, whose loads fail as `trouble` says."""

    def __init__(self) -> None:
        record = Canary(
            id="1",
            tenant="acme",
            name="x",
            digest="d" * 64,
            share=0.5,
            rules=CanaryRules(),
            created=datetime.now(UTC),
            actor="test",
        )
        self.canary = RunningCanary(record)
        self.all = [self.canary]
        self.trouble: Exception | None = DatabaseUnavailableError("it is away")
        self.loads = 0
        self.loaded = False

    def is_loaded(self, canary: RunningCanary) -> bool:
        return self.loaded

    def pinned(self, digests: list[str]) -> nullcontext[None]:
        return nullcontext()

    async def load(self, digest: str, tenant: str) -> None:
        self.loads += 1
        if self.trouble is not None:
            raise self.trouble
        self.loaded = True

    def keeper(self, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> CanaryKeeper:
        me: Any = self
        sets: Any = SimpleNamespace(canaries=self)
        keeper: Any = CanaryKeeper(me, me, sets, me, me, watch)

        async def nothing(*_: object) -> None:
            pass

        monkeypatch.setattr(keeper, "_exchange", nothing)
        monkeypatch.setattr(keeper, "_look_at", nothing)
        found: CanaryKeeper = keeper
        return found


async def test_a_load_that_fails_is_tried_again_after_longer_and_longer_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    canaries, clock = Canaries(), FakeClock()
    watch = Watch(clock)
    keeper = canaries.keeper(watch, monkeypatch)
    keeper.start()
    await clock.advance(60)
    assert canaries.loads == 6  # after 1, 2, 4, 8 and 16 seconds
    assert watch.failing == (LOADS_TASK,)
    await clock.advance(3600)
    assert 6 + 55 <= canaries.loads <= 6 + 60
    assert [r.getMessage() for r in caplog.records if "loading canary" in r.getMessage()] == [
        f"loading canary {'d' * 64} of acme/x fails and is tried again; such a failure is logged "
        "once: it is away"
    ]
    canaries.trouble = None
    await clock.advance(60)
    loads = canaries.loads
    assert canaries.loaded
    assert watch.failing == ()
    await clock.advance(600)
    assert canaries.loads == loads
    # It had to go, and what fails now is news.
    canaries.loaded, canaries.trouble = False, DatabaseUnavailableError("it is away")
    await clock.advance(3)
    assert canaries.loads == loads + 2
    await keeper.stop()
    await watch.stop()


@pytest.mark.parametrize("trouble", ["killed", "failing", "hanging"])
async def test_a_load_comes_back(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    canaries, clock = Canaries(), FakeClock()
    canaries.trouble = None
    how = "hanging" if trouble == "killed" else trouble
    broken = Trouble(monkeypatch, canaries, "load", how)
    watch = Watch(clock)
    keeper = canaries.keeper(watch, monkeypatch)
    keeper.start()
    await clock.advance(LOOK_SECONDS)
    assert broken.calls >= 1
    if trouble == "killed":
        kill("CanaryKeeper._load")
    await clock.advance(LOAD_SECONDS + 2 * LOOK_SECONDS)
    assert watch.failing == (LOADS_TASK,)
    assert broken.calls > 1
    broken.over()
    await clock.advance(LAST_PAUSE_SECONDS)
    assert canaries.loaded
    await clock.advance(LOOK_SECONDS)
    assert not watch.failing
    await keeper.stop()
    await watch.stop()


@pytest.mark.parametrize("how", ["ended", "loaded by others"])
async def test_what_need_not_be_loaded_is_tried_no_more(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    canaries, clock = Canaries(), FakeClock()
    watch = Watch(clock)
    keeper = canaries.keeper(watch, monkeypatch)
    keeper.start()
    await clock.advance(40)
    assert watch.failing == (LOADS_TASK,)
    if how == "ended":
        canaries.all = []
    else:
        canaries.loaded = True
    loads = canaries.loads
    await clock.advance(600)
    assert (canaries.loads, watch.failing) == (loads, ())
    await keeper.stop()
    await watch.stop()


async def test_an_adapter_that_cannot_be_served_is_loaded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canaries, clock = Canaries(), FakeClock()
    canaries.trouble = StoreError("it is broken")
    watch = Watch(clock)
    keeper = canaries.keeper(watch, monkeypatch)
    keeper.start()
    await clock.advance(60)
    assert canaries.canary.fault == "it is broken"
    assert (canaries.loads, watch.failing) == (1, ())
    await keeper.stop()
    await watch.stop()
