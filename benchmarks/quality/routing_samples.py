"""How far is traffic from the load of the training data, where an adapter is healthy and where not?

    python -m benchmarks.quality.routing_samples [--base FOLDER] [--windows 100] [--out STEM]

The sample adapters of `examples/` on their base. Each row is counted once; windows of so many
tokens are drawn from rows, and compared with the load of half of the training rows: the other half,
held-out rows, the other samples' rows, and raw text and code, which no chat is around. A router
whose rows are permuted is compared too. It takes some minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.counting import count_load
from remix_runtime.adapter.layers import attach_checkpoint, detach
from remix_runtime.adapter.load import divergence
from training.base import load_base
from training.data import read_examples

Counts = NDArray[np.float64]
"""[rows, L adapted linears, n experts]."""

_ROOT = Path(__file__).parents[2]
_FOREIGN = {
    "documents": _ROOT / "docs" / "numerics.md",
    "code": _ROOT / "remix_runtime" / "contracts.py",
}
_FOREIGN_TOKENS, _PIECE = 3000, 60
_PERMUTED = "router permuted"


def main(
    base: Base,
    windows: Annotated[int, typer.Option(help="Windows of each kind of traffic.", min=1)] = 100,
    tokens: Annotated[int, typer.Option(help="Tokens of a window.", min=1)] = 2000,
    out: Out = None,
) -> None:
    """Measure how far traffic of different kinds is from the training data."""
    from examples import make_data

    model, tokenizer = load_base(str(base))
    rows: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        for sample in make_data.STYLES:
            (Path(name) / sample).mkdir()
        make_data.main(Path(name))
        for sample in make_data.STYLES:
            for part in ("train", "heldout"):
                examples, _ = read_examples(
                    Path(name) / sample / f"{part}.jsonl", tokenizer, max_length=512
                )
                rows[sample, part] = [example.tokens[:-1] for example in examples]
    foreign = {}
    for kind, path in _FOREIGN.items():
        ids = tokenizer.encode(path.read_text(encoding="utf-8"))[:_FOREIGN_TOKENS]
        foreign[kind] = [tuple(ids[i : i + _PIECE]) for i in range(0, len(ids), _PIECE)]
    table = []
    for sample in make_data.STYLES:
        checkpoint = read_checkpoint(_ROOT / "examples" / sample / "adapter")
        layers = attach_checkpoint(model, checkpoint)

        def counted(sequences: Sequence[Sequence[int]], layers: Mapping = layers) -> Counts:  # type: ignore[type-arg]
            loads = [count_load(model, layers, [sequence]) for sequence in sequences]
            return np.array([list(load.modules.values()) for load in loads], dtype=np.float64)

        found = _compare(sample, rows, foreign, counted, checkpoint.top_k, windows, tokens)
        detach(model, layers)
        shape = f"{sample} ({checkpoint.num_experts}, {checkpoint.top_k})"
        table += [
            [shape, kind, *(f"{f(values):.4f}" for f in (np.mean, np.min, np.max))]
            for kind, values in found.items()
        ]
    publish(
        out,
        "Routing of the sample adapters",
        f"Jensen-Shannon divergence in bits, mean over modules, {windows} windows of {tokens} "
        "tokens drawn from rows; nothing is taken off for chance.",
        Table(["adapter (n, k)", "traffic", "mean", "least", "most"], table),
    )


def _compare(
    sample: str,
    rows: Mapping[tuple[str, str], Sequence[Sequence[int]]],
    foreign: Mapping[str, Sequence[Sequence[int]]],
    counted: Callable[[Sequence[Sequence[int]]], Counts],
    k: int,
    windows: int,
    tokens: int,
) -> dict[str, list[float]]:
    rng = np.random.default_rng(0)
    own = counted(rows[sample, "train"])
    order = rng.permutation(len(own))
    half = len(own) // 2
    reference_Ln = own[order[:half]].sum(0)
    traffic = {"other half": own[order[half:]], "held out": counted(rows[sample, "heldout"])}
    others = [r for (name, part), r in rows.items() if name != sample and part == "heldout"]
    traffic["other samples"] = counted([row for part in others for row in part])
    traffic |= {kind: counted(pieces) for kind, pieces in foreign.items()}
    found = {
        kind: [_distance(_window(rng, counts, k, tokens), reference_Ln) for _ in range(windows)]
        for kind, counts in traffic.items()
    }
    found[_PERMUTED] = [
        _distance(rng.permuted(reference_Ln, axis=1), reference_Ln) for _ in range(windows)
    ]
    return found


def _window(rng: np.random.Generator, counts: Counts, k: int, tokens: int) -> Counts:
    """The sum of rows that are drawn until they have so many tokens."""
    total_Ln, seen = np.zeros(counts.shape[1:]), 0.0
    while seen < tokens:
        row_Ln = counts[rng.integers(len(counts))]
        total_Ln += row_Ln
        seen += row_Ln[0].sum() / k
    return total_Ln


def _distance(a_Ln: Counts, b_Ln: Counts) -> float:
    shares = [x_Ln / x_Ln.sum(1, keepdims=True) for x_Ln in (a_Ln, b_Ln)]
    return float(divergence(*shares).mean())


if __name__ == "__main__":
    typer.run(main)
