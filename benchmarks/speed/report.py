"""The result of the speed suite: every round for machines, medians and verdicts for readers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.result import Table, fields, publish
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
    load = machine["load_average"][0]
    judged = [v.met for v in verdicts if v.met is not None]
    parts: list[str | Table] = [
        f"{machine['cpu']}, {machine['cores']} cores ({', '.join(machine['vector_extensions'])}), "
        f"{machine['memory_gb']} GB; commit {machine['commit']}.",
        f"The machine was busy before the run (load average {load}): take no figure from it."
        if load >= 0.5
        else "",
        "## Goals",
        f"{sum(judged)} of {len(judged)} goals met. Ratios of tokens/s within each round.",
        _goal_table(verdicts),
    ]
    for title, metric in _TABLES:
        rates = _rate_table(results, metric)
        if rates.rows:
            parts += [f"## {title}", "Median of the rounds (least to largest).", rates]
    if results.agreement:
        text = "Share of each greedy output equal to `generate`'s, up to the first difference."
        parts += ["## Same output", text, _agreement_table(results)]
    parts += ["## Systems", _systems_table(systems)]
    parts += [f"Left out: {name}: {reason}" for name, reason in results.failures.items()]
    return publish(
        stem,
        "Speed of the embedded engine",
        *parts,
        "## Settings",
        fields(settings),
        machine=machine,
        settings=settings,
        systems=systems,
        left_out=results.failures,
        goals=[_goal_figures(verdict) for verdict in verdicts],
        cases=[_case_figures(results, case) for case in results.rates],
    )


def _goal_figures(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict.goal) | {
        "case": str(verdict.goal.case),
        "reached": verdict.reached and asdict(verdict.reached),
        "met": verdict.met,
    }


def _case_figures(results: Results, case: Case) -> dict[str, Any]:
    lanes = {
        str(lane): {
            "rounds": [{"round": i, **asdict(r)} for i, r in sorted(rounds.items())],
            "equal_to_generate": results.agreement.get(case, {}).get(lane),
        }
        for lane, rounds in results.rates[case].items()
    }
    return {**asdict(case), "name": str(case), "lanes": lanes}


def _goal_table(verdicts: Sequence[Verdict]) -> Table:
    """One row per goal: what was asked, what was reached in the median, in every round."""
    header = ["goal", "workload", "asked", "reached", "verdict"]
    rows = []
    for v in verdicts:
        reached = v.reached.show(3) if v.reached else "–"
        asked = f">= {v.goal.at_least:.2f}"
        rows.append([v.goal.goal, v.goal.case, asked, reached, v.sentence().split(":")[0]])
    return Table(header, rows)


def _rate_table(results: Results, metric: Metric) -> Table:
    """Cases by lanes."""
    lanes = [lane for lane in Lane if any(results.values(c, lane, metric) for c in results.rates)]
    rows = []
    for case in results.rates:
        cells = [_cell(results, case, lane, metric) for lane in lanes]
        if any(cells) and not (case.prefill and metric == "output"):
            rows.append([case, *cells])
    return Table(["workload", *lanes], rows)


def _cell(results: Results, case: Case, lane: Lane, metric: Metric) -> str:
    values = results.values(case, lane, metric)
    has_prompt = lane is not Lane.ROOFLINE or metric != "prefill"
    return spread(list(values.values())).show() if values and has_prompt else ""


def _agreement_table(results: Results) -> Table:
    rows = [
        [case, ", ".join(f"{lane} {statistics.mean(v):.4f}" for lane, v in lanes.items() if v)]
        for case, lanes in results.agreement.items()
    ]
    return Table(["workload", "share"], rows)


def _systems_table(systems: dict[str, Any]) -> Table:
    rows = [
        [name, s["version"], s["threads"], s["settings"], f"{s['idle_cpu_share']:.1%}"]
        for name, s in systems.items()
    ]
    return Table(["system", "version", "threads", "settings", "CPU while idle"], rows)
