"""The options of `--engine ray`, errors that cross processes, and what replicas are summed to."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from remix_runtime import errors
from remix_runtime.engine_state import EngineStats, Health
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.engines.ray.cluster import reason_in
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.engine import RayEngine
from remix_runtime.engines.ray.fleet import Fleet
from remix_runtime.engines.ray.messages import Report
from remix_runtime.engines.ray.placement import Placement
from remix_runtime.errors import ConfigError, RemixError
from server.engines import make_engine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replicas": 0}, "replicas: found 0, expected at least 1"),
        ({"replicas": 3, "max_replicas": 2}, "max_replicas: found 2, expected at least replicas"),
        ({"target_requests": 0.0}, "target_requests"),
        ({"scale_up_seconds": float("nan")}, "scale_up_seconds"),
        ({"ray_address": "ray://host:10001"}, "Ray's client cannot stream"),
        ({"ray_app": "a/b"}, "ray_app"),
        ({"ray_app": ""}, "ray_app"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RayConfig(**settings)


def test_the_options_of_the_engine_in_the_replicas_are_taken_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("server.engines.require_extra", lambda *_: None)
    given = {"engine_of": "fake", "replicas": 2, "max_replicas": 3, "token_seconds": 0.5}
    engine = make_engine("ray", None, {**given, "weights": None})
    assert isinstance(engine, RayEngine)
    assert engine._inner == FakeConfig(token_seconds=0.5)
    assert engine._config == RayConfig(engine_of="fake", replicas=2, max_replicas=3)
    for option in ("weights", "tensor_parallel_size"):
        with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: the fake engine"):
            make_engine("ray", None, {**given, option: 1})
    with pytest.raises(ConfigError, match="--base: the embedded engine needs"):
        make_engine("ray", None, {"replicas": 2})
    with pytest.raises(ConfigError, match="--replicas: the fake engine has no such option"):
        make_engine("fake", None, {"replicas": 2})


def all_errors(kind: type[RemixError] = RemixError) -> Iterator[type[RemixError]]:
    yield kind
    for below in kind.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from all_errors(below)


@pytest.mark.parametrize("kind", list(all_errors()))
def test_errors_come_back_whole_from_another_process(kind: type[RemixError]) -> None:
    error = kind("what happened")
    for name, value in {"param": "top_p", "code": "c", "digest": "d", "retry_after": 7.5}.items():
        if hasattr(error, name):
            setattr(error, name, value)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), vars(again)) == ("what happened", vars(error))


def test_a_failed_start_says_what_failed() -> None:
    told = (
        "Traceback (most recent call last):\n  File x\n"
        "ray.exceptions.RayTaskError: \x1b[36mray::initialize()\x1b[39m\n  File y\n"
        "remix_runtime.errors.ConfigError: threads: found 0, expected at least 1\n"
    )
    assert reason_in(told) == "threads: found 0, expected at least 1"
    assert reason_in("") == "see the log"


def test_replicas_are_summed_and_what_a_lost_one_counted_stays() -> None:
    placement = Placement(places=2, adapters=2, on_change=lambda: None)
    placement.set_replicas(["a", "b"])
    fleet = Fleet(placement)
    health = Health(alive=True, ready=True)
    stats = EngineStats(running=9, kv_tokens_used=3, adapter_slots_total=4, adapters_loaded=7)
    report = Report(replica="a", pid=1, stats=stats, health=health, adapters=("x",))
    fleet.take(report)
    fleet.take(replace(report, replica="b"))
    fleet.take(replace(report, replica="gone"))
    fleet.take_load("a", "x", {"m": (1, 2)})
    fleet.take_load("b", "x", {"m": (10, 20), "n": (3, 4)})
    fleet.take_load("b", "x", {"m": (11, 20), "n": (3, 4)})
    fleet.count("x", found=True)
    fleet.count("x", found=False)
    found = fleet.stats(EngineStats(running=1, waiting=2, adapters_loaded=5, replicas_wanted=3))
    assert (found.running, found.waiting, found.adapters_loaded) == (1, 2, 5)
    assert (found.kv_tokens_used, found.adapter_slots_total) == (6, 8)
    assert (found.replicas, found.replicas_wanted) == (2, 3)
    assert (found.placed_requests, found.placed_requests_found) == (2, 1)
    placement.set_replicas(["a"])
    assert fleet.stats(EngineStats()).kv_tokens_used == 3
    assert fleet.expert_load("x") == {"m": (12, 22), "n": (3, 4)}
    fleet.forget("x")
    assert fleet.expert_load("x") == {}
