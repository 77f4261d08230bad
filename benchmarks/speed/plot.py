"""The bar plot of a result."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.rounds import spread
from benchmarks.speed.measure import Results
from benchmarks.speed.plan import Lane


def plot_output_rates(results: Results, path: Path) -> None:
    """Output tokens/s of every lane, one group of bars per workload; whiskers are the spread of
    the rounds. The axis is logarithmic because batches of 1 and 32 share it."""
    grid = [case for case in results.rates if not case.prefill]
    lanes = [lane for lane in Lane if any(results.values(c, lane, "output") for c in grid)]
    width = 0.8 / max(len(lanes), 1)
    figure = Figure(figsize=(max(8.0, 2.2 * len(grid)), 5), layout="constrained")
    axes = figure.subplots()
    for offset, lane in enumerate(lanes):
        found = [
            (position, spread(list(values.values())))
            for position, case in enumerate(grid)
            if (values := results.values(case, lane, "output"))
        ]
        axes.bar(
            [position + (offset - (len(lanes) - 1) / 2) * width for position, _ in found],
            [s.median for _, s in found],
            width,
            yerr=[[s.median - s.low for _, s in found], [s.high - s.median for _, s in found]],
            label=str(lane),
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(grid)), [f"{case.batch} x {case.prompt}" for case in grid])
    axes.set_ylabel("output tokens/s (median, whiskers: all rounds)")
    axes.set_title("greedy, all requests at once")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=130)
