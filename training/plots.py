"""Learning curves and expert load of one run, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from training.log import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def smooth(values: Sequence[float], width: int = 10) -> list[float]:
    """Running mean over the last `width` values."""
    return [
        sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))
    ]


def plot_learning_curve(rows: Sequence[Row], path: Path) -> None:
    """Loss, router entropy and effective support size over the steps."""
    figure = _figure(height=3.4)
    loss, entropy, support = figure.subplots(1, 3)
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], color="0.8", label="one step")
    loss.plot(steps, smooth([row["loss"] for row in rows]), label="mean of 10")
    held_out = [(row["step"], row["held_out_loss"]) for row in rows if "held_out_loss" in row]
    if held_out:
        loss.plot(*zip(*held_out, strict=True), "o-", label="held out")
    loss.set(title="loss (nats per completion token)", xlabel="step")
    loss.legend()
    entropy.plot(steps, smooth([row["router_entropy"] for row in rows]))
    entropy.set(title="router entropy (nats)", xlabel="step")
    support.plot(steps, smooth([row["effective_support_size"] for row in rows]))
    support.set(title="effective support size", xlabel="step", ylim=(0, None))
    figure.savefig(path, dpi=110)


def plot_expert_load(rows: Sequence[Row], last_load_Ln: Tensor, path: Path) -> None:
    """Share of tokens that activate each expert: over the steps, and by layer at the end."""
    figure = _figure(height=3.8)
    over_time, by_layer = figure.subplots(1, 2)
    load = torch.tensor([row["expert_load"] for row in rows])
    steps = [row["step"] for row in rows]
    for expert in range(load.shape[1]):
        over_time.plot(steps, smooth(load[:, expert].tolist()), label=str(expert))
    over_time.set(title="expert load, mean over layers", xlabel="step", ylim=(0, 1))
    over_time.legend(title="expert", ncols=4, fontsize="small")
    image = by_layer.imshow(last_load_Ln.T.numpy(), aspect="auto", vmin=0, vmax=1, cmap="viridis")
    by_layer.set(title="expert load at the last step", xlabel="adapted layer", ylabel="expert")
    figure.colorbar(image, ax=by_layer)
    figure.savefig(path, dpi=110)


def _figure(*, height: float) -> Figure:
    """Imports the library, which only the end of a run needs: no step waits for it."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.use("Agg")
    return Figure(figsize=(12, height), layout="constrained")
