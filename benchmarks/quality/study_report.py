"""The report of the study: what its runs show, whichever way it went."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.report import mean_sd
from benchmarks.result import Table, fields, publish

Result = dict[str, Any]
Z = 1.96
"""Standard deviations of a 95 % interval."""


def write_report(
    results: Sequence[Result], *, scale: str, setting: Mapping[str, Any], out: Path | None
) -> None:
    parts: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        parts[result["part"]].append(result)
    sections: list[str | Table] = []
    if parts["rules"]:
        sections += ["## Rules for the routers' rates", *_rules(parts["rules"])]
    if parts["search"]:
        sections += ["## Trials", _trials(parts["search"])]
    if parts["final"]:
        sections += ["## Final runs", *_finals(parts["final"])]
    publish(
        out,
        "ReMix and its baselines on real tasks",
        f"Scale `{scale}`; losses in nats per completion token, lower is better.",
        fields(setting),
        *sections,
        runs=[{key: value for key, value in r.items() if key != "rows"} for r in results],
    )


def loss_of(result: Result, part: str) -> float:
    losses: list[float] = result["losses"][part]
    return statistics.mean(losses)


def entropy_after(result: Result, steps: int = 20) -> float:
    """Of the routers, in nats, when some steps are done."""
    rows = result["rows"]
    return float(rows[min(steps, len(rows)) - 1]["router_entropy"])


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share of `count` answers (Wilson's)."""
    centre = share + Z**2 / (2 * count)
    spread = Z * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return (centre - spread) / scale, (centre + spread) / scale


def _grouped(results: Sequence[Result], *keys: str) -> dict[tuple[str, ...], list[Result]]:
    groups: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for result in results:
        groups[tuple(result[key] for key in keys)].append(result)
    return dict(groups)


def _rules(results: Sequence[Result]) -> list[str | Table]:
    """Every rule on every pair of base and task; its place is its rank by loss there."""
    places: dict[str, list[int]] = defaultdict(list)
    rows = []
    for pair, group in _grouped(results, "base", "task").items():
        rules = _grouped(group, "name")
        losses = {
            name: statistics.mean(loss_of(run, "development") for run in runs)
            for (name,), runs in rules.items()
        }
        best = min(losses.values())
        for place, name in enumerate(sorted(losses, key=lambda name: losses[name]), start=1):
            places[name].append(place)
            runs = rules[(name,)]
            entropy = statistics.mean(map(entropy_after, runs))
            rows.append(
                [*pair, name, len(runs), f"{losses[name]:.4f}", f"{losses[name] / best - 1:+.1%}",
                 f"{entropy:.2f}"]
            )  # fmt: skip
    header = [
        "base",
        "task",
        "rule",
        "seeds",
        "development loss",
        "to the best",
        "entropy, step 20",
    ]
    summary = [
        [name, len(found), f"{statistics.mean(found):.1f}", max(found)]
        for name, found in sorted(places.items(), key=lambda item: statistics.mean(item[1]))
    ]
    return [Table(header, rows), Table(["rule", "pairs", "mean place", "worst"], summary)]


def _trials(results: Sequence[Result]) -> Table:
    rows = [
        [result["base"], result["task"], result["name"], f"{loss_of(result, 'development'):.4f}"]
        for result in results
    ]
    return Table(["base", "task", "method and rates", "development loss"], rows)


def _finals(results: Sequence[Result]) -> list[str | Table]:
    rows = []
    for (base, task, name), runs in _grouped(results, "base", "task", "name").items():
        losses = [loss_of(run, "held_out") for run in runs]
        right = [run["accuracy"] for run in runs if run["accuracy"] is not None]
        seconds = statistics.mean(run["seconds"] for run in runs)
        rows.append(
            [base, task, name, len(runs), mean_sd(losses), _accuracy(right, runs), f"{seconds:.0f}"]
        )
    header = ["base", "task", "method", "seeds", "held-out loss", "accuracy (95 %)", "s a run"]
    return [Table(header, rows), *_verdicts(results)]


def _accuracy(shares: Sequence[float], runs: Sequence[Result]) -> str:
    """Of all seeds together, as if each had other questions; nothing where none was judged."""
    if not shares:
        return ""
    share = statistics.mean(shares)
    low, high = wilson(share, runs[0]["judged"] * len(shares))
    return f"{share:.1%} ({low:.1%} to {high:.1%})"


def _verdicts(results: Sequence[Result]) -> list[str]:
    """ReMix against each method, seed by seed; and its defaults against its best rates."""
    lines = []
    for (base, task), group in _grouped(results, "base", "task").items():
        by_name = {
            name: {run["seed"]: loss_of(run, "held_out") for run in runs}
            for (name,), runs in _grouped(group, "name").items()
        }
        ours = by_name.get("ReMix, M 4", {})
        for name, losses in by_name.items():
            seeds = ours.keys() & losses.keys()
            if name == "ReMix, M 4" or not seeds:
                continue
            gaps = [losses[seed] - ours[seed] for seed in sorted(seeds)]
            ahead = sum(gap > 0 for gap in gaps)
            lines.append(
                f"- {base}, {task}: ReMix, M 4, has a lower loss than {name} on {ahead} of "
                f"{len(gaps)} seeds, mean gap {statistics.mean(gaps):+.4f}"
            )
    return ["\n".join(lines)] if lines else []
