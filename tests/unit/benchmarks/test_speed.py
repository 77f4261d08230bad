"""Rounds, goals and reports on systems of known speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.result import Table
from benchmarks.rounds import rotated
from benchmarks.speed.goals import Verdict, goals, judge
from benchmarks.speed.measure import Results, measure
from benchmarks.speed.plan import Case, Lane, cases, workload
from benchmarks.speed.report import write_report
from benchmarks.speed.worker import Worker

FAKE = "tests.unit.benchmarks.fake_system:FakeSystem"
# Seconds per token of the fake systems; vLLM fails on the long prompts.
SPEEDS: dict[Lane, dict[str, Any]] = {
    Lane.REMIX: {"seconds_per_token": 0.02},
    Lane.LOADED: {"seconds_per_token": 0.02},
    Lane.FLOAT32: {"seconds_per_token": 0.04},
    Lane.GENERATE: {"seconds_per_token": 0.05},
    Lane.VLLM: {"seconds_per_token": 0.025, "broken_at": 300},
    Lane.LLAMACPP: {"seconds_per_token": 0.016},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Case], Results]]:
    folder = tmp_path_factory.mktemp("workers")
    grid = cases([1, 8], ["short", "long"], 6)
    with ExitStack() as stack:
        workers = {}
        for lane, options in SPEEDS.items():
            log = folder / lane.name
            workers[lane] = Worker(str(lane), FAKE, options, log=log, threads=1)
            stack.callback(workers[lane].close)
        workers[Lane.MIXED] = workers[Lane.LOADED]
        found = measure(
            grid,
            workers,
            vocab_size=500,
            rounds=2,
            minutes=10,
            detokenize=str,
            report=lambda line: None,
        )
        yield grid, found


def test_rounds_measure_every_lane_that_runs_the_case(
    results: tuple[list[Case], Results],
) -> None:
    _, found = results
    case = Case(8, "short", 6)
    assert found.values(case, Lane.REMIX, "output") == pytest.approx({0: 400.0, 1: 400.0})
    assert found.values(case, Lane.GENERATE, "output") == pytest.approx({0: 160.0, 1: 160.0})
    assert found.values(Case(1, "long", 1), Lane.REMIX, "prefill") == pytest.approx(
        {0: 15000.0, 1: 15000.0}
    )
    assert found.agreement[case][Lane.REMIX] == [1.0, 1.0]


def test_a_lane_that_fails_is_left_out_and_the_rest_goes_on(
    results: tuple[list[Case], Results],
) -> None:
    _, found = results
    assert found.failures == {Lane.VLLM: "vllm cpu: RuntimeError: broken prompt"}
    assert not found.values(Case(8, "long", 6), Lane.VLLM, "output")
    assert len(found.values(Case(8, "long", 6), Lane.LLAMACPP, "output")) == 2


def test_verdicts_state_ratio_and_gap(results: tuple[list[Case], Results]) -> None:
    grid, found = results
    verdicts = judge(goals(grid), found)

    def of(title: str, case: Case) -> Verdict:
        return next(v for v in verdicts if (v.goal.goal, v.goal.case) == (title, case))

    ahead = of("ahead of generate", Case(8, "long", 6))
    assert ahead.met is True
    assert ahead.sentence() == "met: 2.500"
    behind = of("level with llama.cpp F32", Case(1, "short", 6))
    assert behind.met is False
    assert behind.sentence() == "missed by 0.600 (60.0% of the goal): 0.400"
    assert of("4 adapters, decode", Case(1, "short", 6)).met is True
    assert of("stored against float32", Case(1, "short", 6)).sentence() == "met: 2.000"
    assert of("share of the roofline", Case(1, "short", 6)).met is None
    assert of("ahead of vLLM CPU", Case(8, "long", 6)).sentence() == "not measured"


def test_report_holds_every_round_and_every_goal(
    results: tuple[list[Case], Results], tmp_path: Path
) -> None:
    grid, found = results
    verdicts = judge(goals(grid), found)
    machine = {
        "date": "2026-01-02T03:04:05",
        "cpu": "a | b",
        "cores": 2,
        "vector_extensions": ["avx2"],
        "memory_gb": 8.0,
        "commit": "abc",
        "load_average": [1.75, 0.0, 0.0],
    }
    systems = {
        "remix": {"version": "1", "threads": 2, "settings": "s", "idle_cpu_share": 0.001},
    }
    stem = tmp_path / "folder" / "report"
    text = write_report(stem, found, verdicts, machine, systems, {"rounds": 2})
    assert stem.with_suffix(".md").read_text() == text
    document = json.loads(stem.with_suffix(".json").read_text())
    lanes = {c["name"]: c["lanes"] for c in document["cases"]}
    assert len(lanes["8 x short prompt, 6 new tokens"]["remix"]["rounds"]) == 2
    assert len(document["goals"]) == len(verdicts)
    missed = [g for g in document["goals"] if g["met"] is False]
    assert {g["goal"] for g in missed} == {"level with llama.cpp F32"}
    assert "| 8 x short prompt, 6 new tokens | 400.0 (400.0 to 400.0) |" in text
    assert "missed by 0.600 (60.0% of the goal)" in text
    met = sum(v.met is True for v in verdicts)
    assert f"{met} of {len([v for v in verdicts if v.met is not None])} goals met" in text
    assert "The machine was busy before the run (load average 1.75)" in text
    quiet = {**machine, "load_average": [0.1, 2.0, 2.0]}
    assert "was busy" not in write_report(stem, found, verdicts, quiet, systems, {"rounds": 2})
    assert "Left out: vllm cpu: vllm cpu: RuntimeError: broken prompt" in text


def test_no_round_begins_that_would_not_end_in_time(tmp_path: Path) -> None:
    grid = cases([1], ["short"], 6)
    worker = Worker("fake", FAKE, {"seconds_per_token": 0.02}, log=tmp_path / "log", threads=1)
    try:
        found = measure(
            grid,
            {Lane.REMIX: worker},
            vocab_size=500,
            rounds=50,
            minutes=0,
            detokenize=str,
            report=lambda line: None,
        )
    finally:
        worker.close()
    assert list(found.values(grid[0], Lane.REMIX, "output")) == [0]


def test_workloads_are_shared_by_lanes_and_new_each_round() -> None:
    case = Case(8, "long", 4)
    base = workload(case, Lane.REMIX, 49152, seed=3)
    mixed = workload(case, Lane.MIXED, 49152, seed=3)
    assert base.prompts == mixed.prompts
    assert {len(prompt) for prompt in base.prompts} == {300}
    assert base.adapters == [None] * 8
    assert mixed.adapters == [0, 1, 2, 3, 0, 1, 2, 3]
    loaded = workload(case, Lane.LOADED, 49152, seed=3)
    assert loaded == replace(base, unloaded=False)
    assert base.unloaded
    later = workload(case, Lane.REMIX, 49152, seed=4)
    assert not {tuple(p) for p in base.prompts} & {tuple(p) for p in later.prompts}


def test_every_lane_is_first_in_some_round() -> None:
    lanes = (Lane.REMIX, Lane.GENERATE, Lane.VLLM)
    orders = [list(rotated(lanes, i)) for i in range(3)]
    assert {order[0] for order in orders} == set(lanes)
    assert all(set(order) == set(lanes) for order in orders)


def test_a_table_is_rectangular_whatever_its_cells_hold() -> None:
    lines = str(Table(["a", "b"], [["x|y", "1"], ["z", ""]])).splitlines()
    assert {line.count("|") for line in lines} == {3}
