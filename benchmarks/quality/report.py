"""The report of the experiment: a table, verdicts computed from it, curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.result import Table, publish
from training.plots import smooth

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


def verdicts(losses: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    """One line for each comparison with `OURS`, whichever way it went."""
    lines = []
    for key, label in LABELS.items():
        if key == OURS:
            continue
        gaps = [theirs - own for own, theirs in zip(losses[OURS], losses[key], strict=True)]
        won = sum(gap > 0 for gap in gaps)
        word = {len(gaps): "better than", 0: "worse than"}.get(won, "undecided against")
        gap = f"gap {statistics.mean(gaps):+.4f}"
        lines.append(f"- **{word}** {label}: {gap}, lower loss on {won} of {len(gaps)} seeds")
    return lines


def write_report(
    runs: Sequence[Run], *, base_loss: float, setting: Mapping[str, Any], folder: Path
) -> None:
    """Markdown, JSON and a plot, named by the setting, in `folder`."""
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run["method"], []).append(run)
    losses = {key: [run["held_out"][key[1]] for run in by_method[key[0]]] for key in LABELS}
    rows = [
        [
            label,
            mean_sd(losses[key]),
            " / ".join(f"{loss:.3f}" for loss in losses[key]),
            f"{statistics.mean(run['seconds'] for run in by_method[key[0]]):.0f}",
        ]
        for key, label in LABELS.items()
    ]
    sizes = {
        method: [[row["effective_support_size"] for row in r["rows"]] for r in by_method[method]]
        for method in ("remix causal", "softmax")
    }
    support = [
        [method, mean_sd([v[0] for v in values]), mean_sd([last_ten(v) for v in values])]
        for method, values in sizes.items()
    ]
    skills = [
        [
            skill,
            *(
                f"{statistics.mean(run['by_skill'][skill] for run in found):.3f}"
                for found in by_method.values()
            ),
        ]
        for skill in sorted(runs[0]["by_skill"])
    ]
    stem = folder / setting["name"]
    publish(
        stem,
        "Training quality: ReMix against its baselines",
        f"float32 on {setting['threads']} CPU thread(s). Made by",
        f"    {command(setting)}",
        introduction(setting, base_loss, num_skills=len(skills)),
        Table(
            ["method", "held-out loss, mean ± sd", "by seed", "seconds per run, machine shared"],
            rows,
        ),
        f"{LABELS[OURS]}, is",
        "\n".join(verdicts(losses)),
        "Effective support size of the routing weights (first step; mean of the last ten):",
        Table(["method", "first", "last"], support),
        f"![curves]({setting['name']}.png)",
        "Held-out loss by skill, mean over seeds:",
        Table(["skill", *by_method], skills),
        "Learning rates, the best on development rows with a seed of their own:",
        "\n".join(
            f"- {method}: {', '.join(f'{k} {v}' for k, v in sorted(found[0]['rates'].items()))}"
            for method, found in by_method.items()
        ),
    )
    plot(by_method, stem.with_name(stem.name + ".png"))


def introduction(setting: Mapping[str, Any], base_loss: float, num_skills: int) -> str:
    return (
        f"The base ({setting['base_title']}) alone has a held-out loss of {base_loss:.4f}. "
        f"{num_skills} skills (`benchmarks/quality/skills.py`); loss is the mean over held-out "
        "rows of their mean completion-token loss, in nats. All methods see the same batches of "
        f"{setting['batch_size']} rows for the same {setting['steps']} steps and activate the same "
        f"rank per token (n = {setting['num_experts']}, k = {setting['top_k']}, "
        f"r = {setting['r']}; LoRA: rank {setting['top_k'] * setting['r']}) in "
        f"{', '.join(setting['targets'])} of the last {setting['layers']} layer(s). A mixture "
        f"stores {setting['num_experts']}/{setting['top_k']} of LoRA's parameters, and a ReMix "
        f"step runs {setting['selections']} selections of each example, so it costs more than a "
        "baseline's."
    )


def command(setting: Mapping[str, Any]) -> str:
    """What makes this report again."""
    named = ("name", "steps", "batch_size", "selections", "layers", "num_experts", "top_k", "r")
    options = [f"--{key.replace('_', '-')} {setting[key]}" for key in named]
    lists = [f"--{key} {','.join(map(str, setting[key]))}" for key in ("targets", "seeds")]
    return " ".join(["python -m benchmarks.quality.experiment --base BASE", *options, *lists])


def last_ten(values: Sequence[float]) -> float:
    return statistics.mean(values[-10:])


def plot(by_method: Mapping[str, Sequence[Run]], path: Path) -> None:
    figure = Figure(figsize=(14, 4), layout="constrained")
    train, held_out, size = figure.subplots(1, 3)
    for number, (method, runs) in enumerate(by_method.items()):
        style = {"color": f"C{number}", "label": method}

        def mean(key: str, runs: Sequence[Run] = runs) -> list[float]:
            present = [[row[key] for row in run["rows"] if key in row] for run in runs]
            return [statistics.mean(column) for column in zip(*present, strict=True)]

        rows = runs[0]["rows"]
        steps = [row["step"] for row in rows]
        train.plot(steps, smooth(mean("loss"), 20), **style)
        evaluated = [row["step"] for row in rows if "held_out_loss" in row]
        held_out.plot(evaluated, mean("held_out_loss"), "o-", **style)
        if method != "lora":
            size.plot(steps, smooth(mean("effective_support_size"), 5), **style)
    train.set(title="training loss, mean of 20 steps and all seeds", xlabel="step", yscale="log")
    held_out.set(title="held-out loss, mean of all seeds", xlabel="step", yscale="log")
    size.set(title="effective support size", xlabel="step", ylim=(0.9, None))
    for axes in (train, held_out, size):
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)
