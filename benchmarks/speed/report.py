"""The result of the speed suite: every round for machines, medians and verdicts for readers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.result import fields, table, write_result
from benchmarks.rounds import spread
from benchmarks.speed.goals import Verdict
from benchmarks.speed.measure import Metric, Results
from benchmarks.speed.plan import Case, Lane

_TABLES: tuple[tuple[str, Metric], ...] = (
    ("Output tokens/s, submission to last token", "output"),
    ("Decode tokens/s, after every request has its first token", "decode"),
    ("Prompt tokens/s, until every request has its first token", "prefill"),
)


def write_report(
    stem: Path,
    results: Results,
    verdicts: Sequence[Verdict],
    machine: dict[str, Any],
    systems: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """Goals first, then the rates, then what was measured on what. Returns the Markdown."""
    parts = [_machine_lines(machine), _goal_table(verdicts)]
    for title, metric in _TABLES:
        rates = _rate_table(results, metric)
        parts.append(rates and f"## {title}\n\nMedian of the rounds (least to largest).\n\n{rates}")
    parts += [_agreement_table(results), _systems_table(systems)]
    parts += [f"Left out: {name}: {reason}" for name, reason in results.failures.items()]
    parts.append("## Settings\n\n" + fields(settings))
    figures = {
        "settings": settings,
        "systems": systems,
        "left_out": results.failures,
        "goals": [_goal_figures(verdict) for verdict in verdicts],
        "cases": [_case_figures(results, case) for case in results.rates],
    }
    return write_result(stem, "Speed of the embedded engine", parts, machine, figures)


def _goal_figures(verdict: Verdict) -> dict[str, Any]:
    goal = asdict(verdict.goal) | {"goal": verdict.goal.title, "case": str(verdict.goal.case)}
    del goal["title"]
    return {**goal, "reached": verdict.reached and asdict(verdict.reached), "met": verdict.met}


def _case_figures(results: Results, case: Case) -> dict[str, Any]:
    lanes = {
        str(lane): {
            "rounds": [{"round": i, **asdict(r)} for i, r in sorted(rounds.items())],
            "equal_to_generate": results.agreement.get(case, {}).get(lane),
        }
        for lane, rounds in results.rates[case].items()
    }
    return {**asdict(case), "name": str(case), "lanes": lanes}


def _machine_lines(machine: dict[str, Any]) -> str:
    vectors = ", ".join(machine["vector_extensions"])
    load = machine["load_average"][0]
    busy = f"The machine was busy before the run (load average {load}): take no figure from it."
    line = (
        f"{machine['cpu']}, {machine['cores']} cores ({vectors}), {machine['memory_gb']} GB; "
        f"commit {machine['commit']}."
    )
    return line if load < 0.5 else f"{line}\n\n{busy}"


def _goal_table(verdicts: Sequence[Verdict]) -> str:
    """One row per goal: what was asked, what was reached in the median, in every round."""
    rows = [
        [
            v.goal.title,
            v.goal.case,
            f">= {v.goal.at_least:.2f}",
            v.reached.show(3) if v.reached else "–",
            v.sentence().split(":")[0],
        ]
        for v in verdicts
    ]
    judged = [v.met for v in verdicts if v.met is not None]
    summary = f"{sum(judged)} of {len(judged)} goals met. Ratios of tokens/s within each round."
    goals = table(["goal", "workload", "asked", "reached", "verdict"], rows)
    return f"## Goals\n\n{summary}\n\n{goals}"


def _rate_table(results: Results, metric: Metric) -> str:
    """Cases by lanes; empty where no lane has the metric."""
    lanes = [lane for lane in Lane if any(results.values(c, lane, metric) for c in results.rates)]
    rows = []
    for case in results.rates:
        if metric == "output" and case.prefill:
            continue
        cells = [_cell(results, case, lane, metric) for lane in lanes]
        if any(cells):
            rows.append([case, *cells])
    return table(["workload", *lanes], rows) if rows else ""


def _cell(results: Results, case: Case, lane: Lane, metric: Metric) -> str:
    values = results.values(case, lane, metric)
    has_prompt = lane is not Lane.ROOFLINE or metric != "prefill"
    return spread(list(values.values())).show() if values and has_prompt else ""


def _agreement_table(results: Results) -> str:
    rows = [
        [case, ", ".join(f"{lane} {statistics.mean(v):.4f}" for lane, v in lanes.items() if v)]
        for case, lanes in results.agreement.items()
    ]
    text = "Share of each greedy output equal to `generate`'s, up to the first difference."
    return f"## Same output\n\n{text}\n\n{table(['workload', 'share'], rows)}" if rows else ""


def _systems_table(systems: dict[str, Any]) -> str:
    rows = [
        [name, s["version"], s["threads"], s["settings"], f"{s['idle_cpu_share']:.1%}"]
        for name, s in systems.items()
    ]
    header = ["system", "version", "threads", "settings", "CPU while idle"]
    return "## Systems\n\n" + table(header, rows)
