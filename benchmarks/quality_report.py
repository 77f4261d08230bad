"""The report of `quality.py`: a table, verdicts computed from it, curves."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from training.plots import smooth

matplotlib.use("Agg")

Run = dict[str, Any]

OURS = ("remix causal", "top-k")
LABELS = {
    ("remix causal", "top-k"): "ReMix, credit causal, top-k at inference",
    ("remix sequence", "top-k"): "ReMix, credit sequence, top-k at inference",
    ("remix causal", "sampled"): "ReMix, credit causal, sampling at inference",
    ("remix sequence", "sampled"): "ReMix, credit sequence, sampling at inference",
    ("random routing", "top-k"): "random routing: untrained router, top-k",
    ("random routing", "sampled"): "random routing: untrained router, sampling",
    ("lora", "top-k"): "plain LoRA of rank k·r",
    ("softmax", "top-k"): "softmax-weighted top-k mixture",
}


def mean_sd(values: Sequence[float]) -> str:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {sd:.4f}"


def losses_of(runs: Sequence[Run]) -> dict[tuple[str, str], list[float]]:
    """(method, inference) to the held-out losses, in the order of the seeds."""
    return {
        key: [run["held_out"][key[1]] for run in runs if run["method"] == key[0]] for key in LABELS
    }


def verdicts(losses: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    """One line for each comparison with `OURS`, whichever way it went."""
    ours = losses[OURS]
    lines = []
    for key, label in LABELS.items():
        if key == OURS:
            continue
        gaps = [theirs - own for own, theirs in zip(ours, losses[key], strict=True)]
        won = sum(gap > 0 for gap in gaps)
        if won == len(gaps):
            word = "**better than**"
        elif won == 0:
            word = "**worse than**"
        else:
            word = "**undecided against**"
        lines.append(
            f"- {word} {label}: gap {statistics.mean(gaps):+.4f}, "
            f"lower loss on {won} of {len(gaps)} seeds"
        )
    return lines


def support(runs: Sequence[Run], method: str, which: Callable[[list[float]], float]) -> str:
    values = [
        which([row["effective_support_size"] for row in run["rows"]])
        for run in runs
        if run["method"] == method
    ]
    return mean_sd(values)


def last_ten(values: list[float]) -> float:
    return statistics.mean(values[-10:])


def write_report(
    runs: Sequence[Run], *, base_loss: float, setting: Mapping[str, Any], folder: Path
) -> None:
    """A Markdown file with a plot, named by the setting, in `folder`."""
    losses = losses_of(runs)
    methods = list(dict.fromkeys(run["method"] for run in runs))
    seconds = {m: statistics.mean(r["seconds"] for r in runs if r["method"] == m) for m in methods}
    skills = sorted(runs[0]["by_skill"])
    lines = [
        "# Training quality: ReMix against its baselines",
        "",
        f"{date.today().isoformat()}, {platform.machine()}, {setting['threads']} CPU thread(s), "
        f"torch {torch.__version__}, float32. Made by",
        "",
        f"    {command(setting)}",
        "",
        f"The base ({setting['base_title']}) alone has a held-out loss of {base_loss:.4f}. "
        f"{len(skills)} skills (`benchmarks/quality_skills.py`); loss is the mean over held-out "
        "rows of their mean completion-token loss, in nats. All methods see the same batches of "
        f"{setting['batch_size']} rows for the same {setting['steps']} steps and activate the same "
        f"rank per token (n = {setting['num_experts']}, k = {setting['top_k']}, "
        f"r = {setting['r']}; LoRA: rank {setting['top_k'] * setting['r']}) in "
        f"{', '.join(setting['targets'])} of the last {setting['layers']} layer(s). A mixture "
        f"stores {setting['num_experts']}/{setting['top_k']} of LoRA's parameters, and a ReMix "
        f"step runs {setting['selections']} selections of each example, so it costs more than a "
        "baseline's.",
        "",
        "| method | held-out loss, mean ± sd | by seed | seconds per run, machine shared |",
        "|---|---|---|---|",
    ]
    for key, label in LABELS.items():
        each = " / ".join(f"{loss:.3f}" for loss in losses[key])
        lines.append(f"| {label} | {mean_sd(losses[key])} | {each} | {seconds[key[0]]:.0f} |")
    lines += ["", f"{LABELS[OURS]}, is", "", *verdicts(losses), ""]
    lines += [
        "Effective support size of the routing weights (first step; mean of the last ten):",
        "",
        "| method | first | last |",
        "|---|---|---|",
    ]
    for method in ("remix causal", "softmax"):
        first, last = support(runs, method, lambda v: v[0]), support(runs, method, last_ten)
        lines.append(f"| {method} | {first} | {last} |")
    lines += [
        "",
        f"![curves]({setting['name']}.png)",
        "",
        "Held-out loss by skill, mean over seeds:",
        "",
    ]
    lines += ["| skill | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for skill in skills:
        means = [
            statistics.mean(r["by_skill"][skill] for r in runs if r["method"] == m) for m in methods
        ]
        lines.append(f"| {skill} | " + " | ".join(f"{x:.3f}" for x in means) + " |")
    lines += ["", "Learning rates, the best on development rows with a seed of their own:", ""]
    for method in methods:
        rates = next(run["rates"] for run in runs if run["method"] == method)
        lines.append(f"- {method}: {', '.join(f'{k} {v}' for k, v in sorted(rates.items()))}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{setting['name']}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(runs, methods, folder / f"{setting['name']}.png")


def command(setting: Mapping[str, Any]) -> str:
    """What makes this report again."""
    named = ("name", "steps", "batch_size", "selections", "layers", "num_experts", "top_k", "r")
    options = [f"--{key.replace('_', '-')} {setting[key]}" for key in named]
    lists = [f"--{key} {' '.join(map(str, setting[key]))}" for key in ("targets", "seeds")]
    return " ".join(["python -m benchmarks.quality --base BASE", *options, *lists])


def plot(runs: Sequence[Run], methods: Sequence[str], path: Path) -> None:
    figure = Figure(figsize=(14, 4), layout="constrained")
    train, held_out, size = figure.subplots(1, 3)
    for number, method in enumerate(methods):
        style = {"color": f"C{number}", "label": method}
        own = [run["rows"] for run in runs if run["method"] == method]
        steps = [row["step"] for row in own[0]]

        def mean(key: str, own: list[list[dict[str, Any]]] = own) -> list[float]:
            present = [[row[key] for row in rows if key in row] for rows in own]
            return [statistics.mean(column) for column in zip(*present, strict=True)]

        train.plot(steps, smooth(mean("loss"), 20), **style)
        evaluated = [row["step"] for row in own[0] if "held_out_loss" in row]
        held_out.plot(evaluated, mean("held_out_loss"), "o-", **style)
        if method != "lora":
            size.plot(steps, smooth(mean("effective_support_size"), 5), **style)
    train.set(title="training loss, mean of 20 steps and all seeds", xlabel="step", yscale="log")
    held_out.set(title="held-out loss, mean of all seeds", xlabel="step", yscale="log")
    size.set(title="effective support size", xlabel="step", ylim=(0.9, None))
    for axes in (train, held_out, size):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
