"""The watch over routing: a window that forgets, verdicts on the newest traffic, adapters that come
and go."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest

from remix_runtime.adapter.load import MIN_TOKENS
from remix_runtime.contracts import AdapterInfo, TrainedLoad
from remix_runtime.watch import LAST_PAUSE_SECONDS, TELL_SECONDS, Watch
from server.live import routing as module
from server.live.routing import (
    LOOK_SECONDS,
    QUIET_SECONDS,
    ROUTING_TASK,
    WINDOW,
    RoutingMonitor,
    Window,
)
from tests.clocks import FakeClock
from tests.unit.server.harness import eventually

K = 2
EVEN = (1, 1, 1, 1)
"""Parts of the activations of 2 of 4 experts."""
FIRST_TWO = (2, 2, 0, 0)


def counts(tokens: int, parts: Sequence[int] = EVEN) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tokens * part // 2 for part in parts) for name in ("up", "down")}


def plus(
    a: dict[str, tuple[int, ...]], b: dict[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    return {name: tuple(map(sum, zip(a[name], b[name], strict=True))) for name in a}


# -- the window -----------------------------------------------------------------------------------


def tokens_of(window: Window) -> float:
    (tokens,) = {round(sum(load) / K, 6) for load in window.load.values()}
    return tokens


def test_counts_become_what_is_new() -> None:
    window = Window(K)
    assert not window.add({})
    assert window.load == {}
    assert not window.add(counts(0))
    assert window.add(counts(100))
    assert window.load == {name: list(c) for name, c in counts(100).items()}
    assert not window.add(counts(100))
    assert window.add(counts(130))
    assert tokens_of(window) == 130


@pytest.mark.parametrize("at_once", [10, 500, 10**6])
def test_the_newest_tokens_are_the_window(at_once: int) -> None:
    window, load = Window(K), counts(10**7)
    window.add(load)
    assert tokens_of(window) == WINDOW * MIN_TOKENS
    new = 0
    while new < 3 * WINDOW * MIN_TOKENS:
        load = plus(load, counts(at_once, FIRST_TWO))
        window.add(load)
        new += at_once
        assert tokens_of(window) == pytest.approx(WINDOW * MIN_TOKENS)
    last = window.load["up"]
    # What is old counts about exp(-3), and half of that is for the first two experts too.
    assert 0.95 < sum(last[:2]) / sum(last) < 1


def test_an_adapter_that_was_loaded_again_counts_from_zero() -> None:
    window = Window(K)
    window.add(counts(1000))
    assert window.add(counts(20))
    assert tokens_of(window) == 1020
    assert window.add(counts(50))
    assert tokens_of(window) == 1050


def test_modules_may_be_told_of_later() -> None:
    window = Window(1)
    window.add({"b": (3, 1)})
    window.add({"a": (1, 1), "b": (4, 1)})
    assert window.load == {"a": [1.0, 1.0], "b": [4.0, 1.0]}


# -- the monitor ----------------------------------------------------------------------------------


class Fakes:
    """An engine and live adapters, as far as the monitor asks them, on a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.load: dict[str, dict[str, tuple[int, ...]]] = {}
        self.infos: dict[str, AdapterInfo] = {}
        self.used: set[str] = set()
        self.asked: list[str] = []
        self.time = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: self.time)
        self.monitor = RoutingMonitor(self, self)  # type: ignore[arg-type]

    def add(self, digest: str, trained: TrainedLoad | None = None) -> None:
        self.infos[digest] = AdapterInfo(
            digest=digest,
            num_layers=2,
            num_experts=4,
            top_k=K,
            r=1,
            num_bytes=1,
            trained_load=trained,
        )
        self.load[digest] = counts(0)

    def serve(self, digest: str, tokens: int, parts: Sequence[int] = EVEN) -> None:
        self.load[digest] = plus(self.load[digest], counts(tokens, parts))
        self.used.add(digest)

    def expert_load(self, digest: str) -> dict[str, tuple[int, ...]]:
        self.asked.append(digest)
        return self.load.get(digest, {})

    def info(self, digest: str) -> AdapterInfo | None:
        return self.infos.get(digest)

    def take_used(self) -> set[str]:
        used, self.used = self.used, set()
        return used


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> Fakes:
    return Fakes(monkeypatch)


TRAINED = TrainedLoad(tokens=5000, modules=counts(5000))


async def test_healthy_drifted_and_collapsed_traffic(
    fakes: Fakes, caplog: pytest.LogCaptureFixture
) -> None:
    last_two = TrainedLoad(tokens=5000, modules=counts(5000, (0, 0, 2, 2)))
    for digest, trained in (("a", TRAINED), ("b", last_two), ("c", None)):
        fakes.add(digest, trained)
    fakes.serve("a", 4000)
    fakes.serve("b", 4000)
    fakes.serve("c", 4000, FIRST_TWO)
    with caplog.at_level(logging.WARNING):
        await fakes.monitor.look()
    latest = fakes.monitor.latest
    assert {digest: list(found.flags) for digest, found in latest.items()} == {
        "a": [],
        "b": ["drifted"],
        "c": ["collapsed"],
    }
    assert latest["c"].drift is None
    told = sorted(record.getMessage() for record in caplog.records)
    assert len(told) == 2
    assert "adapter b has drifted" in told[0]
    assert "adapter c has collapsed: 2.0 effective experts" in told[1]
    caplog.clear()
    fakes.serve("b", 10)
    await fakes.monitor.look()
    assert not caplog.records, "a flag is told of once"


async def test_what_drifts_after_months_is_flagged_and_what_is_over_is_not(fakes: Fakes) -> None:
    fakes.add("a", TRAINED)
    fakes.serve("a", 10**8)
    await fakes.monitor.look()
    assert fakes.monitor.latest["a"].flags == ()
    for _ in range(12):  # a minute
        fakes.time += 5
        fakes.serve("a", 300, FIRST_TWO)
        await fakes.monitor.look()
    assert set(fakes.monitor.latest["a"].flags) == {"drifted", "collapsed"}
    for _ in range(24):
        fakes.time += 5
        fakes.serve("a", 300)
        await fakes.monitor.look()
    assert fakes.monitor.latest["a"].flags == ()


async def test_only_adapters_in_use_are_asked_for(fakes: Fakes) -> None:
    for i in range(100):
        fakes.add(f"idle{i}")
    fakes.add("a")
    fakes.serve("a", 10)
    await fakes.monitor.look()
    assert fakes.asked == ["a"]
    fakes.asked.clear()
    # Counts that come later than the request are seen, and then it is quiet.
    fakes.load["a"] = plus(fakes.load["a"], counts(10))
    fakes.time += QUIET_SECONDS / 2
    await fakes.monitor.look()
    assert fakes.monitor.latest["a"].tokens == 20
    fakes.time += QUIET_SECONDS + 1
    await fakes.monitor.look()
    fakes.asked.clear()
    await fakes.monitor.look()
    assert fakes.asked == []
    assert fakes.monitor.latest["a"].tokens == 20


async def test_an_adapter_that_a_request_waits_for_is_seen_once_it_is_loaded(fakes: Fakes) -> None:
    fakes.used.add("a")
    await fakes.monitor.look()
    assert fakes.monitor.latest == {}
    fakes.add("a")
    fakes.load["a"] = counts(10)
    fakes.time += 5
    await fakes.monitor.look()
    assert fakes.monitor.latest["a"].tokens == 10


async def test_an_adapter_that_is_gone_is_forgotten(fakes: Fakes) -> None:
    fakes.add("a")
    fakes.serve("a", 10)
    await fakes.monitor.look()
    del fakes.infos["a"]
    assert fakes.monitor.now("a").modules == ()
    await fakes.monitor.look()
    assert fakes.monitor.latest == {}
    fakes.add("a")
    fakes.serve("a", 30)
    await fakes.monitor.look()
    assert fakes.monitor.latest["a"].tokens == 30


async def test_who_asks_gets_this_moment(fakes: Fakes) -> None:
    fakes.add("a", TRAINED)
    found = fakes.monitor.now("a")
    assert [m.activations for m in found.modules] == [(0, 0, 0, 0)] * 2
    assert found.modules[0].trained == (0.25,) * 4
    fakes.serve("a", 40)
    assert fakes.monitor.now("a").tokens == 40
    assert fakes.monitor.now("a").tokens == 40
    await fakes.monitor.look()
    assert fakes.monitor.now("a").tokens == 40
    assert fakes.monitor.now("unknown").tokens == 0


async def test_an_engine_that_does_not_count_has_nothing(fakes: Fakes) -> None:
    fakes.add("a", TRAINED)
    fakes.load["a"] = {}
    fakes.used.add("a")
    await fakes.monitor.look()
    assert fakes.monitor.latest == {}
    assert fakes.monitor.now("a").modules == ()


async def test_it_looks_by_itself_and_stops(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.001)
    fakes.add("a")
    watch: Any = Watch()
    fakes.monitor.start(watch)
    fakes.serve("a", 10)
    await eventually(lambda: "a" in fakes.monitor.latest)
    await fakes.monitor.stop()
    fakes.serve("a", 10)
    await asyncio.sleep(0.02)
    assert fakes.monitor.latest["a"].tokens == 10
    assert watch.failing == ()


TROUBLES = ["killed", "failing", "hanging"]


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_the_watch_over_routing_comes_back(
    trouble: str, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    watch = Watch(clock)
    fakes.add("a")
    fakes.monitor.start(watch)
    fakes.serve("a", 10)
    await clock.advance(2 * LOOK_SECONDS)
    assert fakes.monitor.latest["a"].tokens == 10
    fakes.serve("a", 10)
    if trouble == "killed":
        (task,) = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[operator]
        task.cancel()
        await clock.advance(TELL_SECONDS)
    else:

        async def broken() -> None:
            if trouble == "failing":
                raise ZeroDivisionError
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(fakes.monitor, "look", broken)
            await clock.advance(3 * (TELL_SECONDS + 60))
            assert watch.failing == (ROUTING_TASK,)
            assert fakes.monitor.latest["a"].tokens == 10
    await clock.advance(LAST_PAUSE_SECONDS + 60 + LOOK_SECONDS)
    assert fakes.monitor.latest["a"].tokens == 20
    assert watch.failing == ()
    await fakes.monitor.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}
