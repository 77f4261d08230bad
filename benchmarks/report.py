"""A result as JSON for machines and Markdown for readers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.goals import Metric, Verdict
from benchmarks.measure import spread
from benchmarks.plan import Case, Lane
from benchmarks.speed import Results

_TABLES: tuple[tuple[str, Metric], ...] = (
    ("Output tokens/s, submission to last token", "output"),
    ("Decode tokens/s, after every request has its first token", "decode"),
    ("Prompt tokens/s, until every request has its first token", "prefill"),
)


def as_json(
    results: Results,
    verdicts: Sequence[Verdict],
    machine: dict[str, Any],
    systems: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """Every rate of every round, the verdicts, the machine and the systems."""
    cases = [
        {
            **asdict(case),
            "name": case.name,
            "lanes": {
                str(lane): {
                    "rounds": [{"round": i, **asdict(r)} for i, r in sorted(rounds.items())],
                    "equal_to_generate": results.agreement.get(case, {}).get(lane),
                }
                for lane, rounds in lanes.items()
            },
        }
        for case, lanes in results.rates.items()
    ]
    goals = [
        {
            "goal": v.goal.title,
            "case": v.goal.case.name,
            "lane": v.goal.lane,
            "reference": v.goal.reference,
            "metric": v.goal.metric,
            "at_least": v.goal.at_least,
            "reached": asdict(v.reached) if v.reached else None,
            "met": v.met,
        }
        for v in verdicts
    ]
    document = {
        "machine": machine,
        "settings": settings,
        "systems": systems,
        "left_out": results.failures,
        "goals": goals,
        "cases": cases,
    }
    return json.dumps(document, indent=1) + "\n"


def as_markdown(
    results: Results,
    verdicts: Sequence[Verdict],
    machine: dict[str, Any],
    systems: dict[str, Any],
    settings: dict[str, Any],
) -> str:
    """Goals first, then the rates, then what was measured on what."""
    parts = [f"# Speed of the embedded engine, {machine['date'][:10]}", _machine_line(machine)]
    parts.append(_busy_line(machine))
    parts.append(goal_table(verdicts))
    for title, metric in _TABLES:
        table = rate_table(results, metric)
        if table:
            parts.append(f"## {title}\n\nMedian of the rounds (least to largest).\n\n{table}")
    parts.append(_agreement_table(results))
    parts.append("## Systems\n\n" + _systems_table(systems))
    parts += [f"Left out: {name}: {reason}" for name, reason in results.failures.items()]
    parts.append("## Settings\n\n" + _fields(settings))
    parts.append("## Machine\n\n" + _fields(machine))
    return "\n\n".join(part for part in parts if part) + "\n"


def goal_table(verdicts: Sequence[Verdict]) -> str:
    """One row per goal: what was asked, what was reached in the median, in every round."""
    rows = [
        [
            v.goal.title,
            v.goal.case.name,
            f">= {v.goal.at_least:.2f}",
            f"{v.reached.median:.3f} ({v.reached.low:.3f} to {v.reached.high:.3f})"
            if v.reached
            else "–",
            v.sentence() if v.met is None else ("met" if v.met else v.sentence().split(":")[0]),
        ]
        for v in verdicts
    ]
    header = ["goal", "workload", "asked", "reached", "verdict"]
    judged = [v.met for v in verdicts if v.met is not None]
    summary = f"{sum(judged)} of {len(judged)} goals met. Ratios of tokens/s within each round."
    return f"## Goals\n\n{summary}\n\n" + table(header, rows)


def rate_table(results: Results, metric: Metric) -> str:
    """Cases by lanes; empty where no lane has the metric."""
    lanes = [lane for lane in Lane if any(results.values(c, lane, metric) for c in results.rates)]
    rows = []
    for case in results.rates:
        if metric == "output" and case.prefill:
            continue
        cells = [_cell(results, case, lane, metric) for lane in lanes]
        if any(cells):
            rows.append([case.name, *cells])
    return table(["workload", *map(str, lanes)], rows) if rows else ""


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [_row(header), _row(["---"] * len(header))]
    return "\n".join([*lines, *(_row(row) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _cell(results: Results, case: Case, lane: Lane, metric: Metric) -> str:
    if metric == "prefill" and lane is Lane.ROOFLINE:
        return ""
    values = results.values(case, lane, metric)
    if not values:
        return ""
    s = spread(list(values.values()))
    return f"{s.median:.1f} ({s.low:.1f} to {s.high:.1f})"


def _agreement_table(results: Results) -> str:
    rows = []
    for case, lanes in results.agreement.items():
        shares = ", ".join(f"{lane} {statistics.mean(v):.4f}" for lane, v in lanes.items())
        rows.append([case.name, shares])
    if not rows:
        return ""
    title = "## Same output\n\nShare of each greedy output equal to `generate`'s, up to the first"
    return f"{title} difference.\n\n" + table(["workload", "share"], rows)


def _systems_table(systems: dict[str, Any]) -> str:
    rows = [
        [name, s["version"], str(s["threads"]), s["settings"], f"{s['idle_cpu_share']:.1%}"]
        for name, s in systems.items()
    ]
    return table(["system", "version", "threads", "settings", "CPU while idle"], rows)


def _machine_line(machine: dict[str, Any]) -> str:
    vectors = ", ".join(machine["vector_extensions"])
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({vectors}), {machine['memory_gb']} GB; "
        f"commit {machine['commit']}."
    )


def _busy_line(machine: dict[str, Any]) -> str:
    load: float = machine["load_average"][0]
    if load < 0.5:
        return ""
    return f"The machine was busy before the run (load average {load}): take no figure from it."


def _fields(values: dict[str, Any]) -> str:
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in values.items())


def write_result(stem: Path, json_text: str, markdown: str) -> None:
    """`stem`.json and `stem`.md, their folder included."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_name(stem.name + ".json").write_text(json_text)
    stem.with_name(stem.name + ".md").write_text(markdown)
