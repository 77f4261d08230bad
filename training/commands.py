"""`remix train` and `remix eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file: base, data, output and any other setting.")
    ],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last saved state, e.g. after a crash."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in the output folder first.")
    ] = False,
) -> None:
    """Train a ReMix adapter (or a baseline) on a JSONL file.

    The smallest CONFIG.yaml:

        base: path/to/base-model

        data: rows.jsonl

        output: runs/my-adapter

    Rows are {"prompt": "...", "completion": "..."} or {"messages": [...]}; paths are relative to
    the config file. The adapter is written to OUTPUT/adapter, ready for `remix serve`; training
    states, metrics.jsonl, TensorBoard logs and plots stand beside it.
    """
    from rich.console import Console

    from training.config import load_config
    from training.run import run_training

    console = Console()
    settings = load_config(config)
    result = run_training(settings, resume=resume, overwrite=overwrite, console=console)
    if result.adapter is None:
        console.print(
            f"trained; see {settings.output} (a softmax mixture is a baseline: it is not servable, "
            "so no adapter was written)"
        )
    else:
        console.print(f"adapter {result.digest} written to {result.adapter}", soft_wrap=True)


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as `remix train` writes it.")],
    data: Annotated[Path, typer.Argument(help="JSONL file in the form of the training data.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, folder or hub id. Default: the one the adapter names."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 16,
    max_length: Annotated[int, typer.Option(min=2, help="Longest row, in tokens.")] = 2048,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and no table.")
    ] = False,
) -> None:
    """Compare an adapter with its base model on a JSONL file.

    Prints the mean completion loss (nats per token; lower is better) and the share of rows whose
    greedy answer equals the reference.
    """
    import json
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from training.evaluation import compare_with_base

    scores = compare_with_base(
        adapter,
        data,
        base=base,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
    )
    if as_json:
        typer.echo(json.dumps({name: asdict(score) for name, score in scores.items()}))
        return
    table = Table("", "loss", "exact match", title=f"{data.name}, {scores['base'].rows} rows")
    for name, score in scores.items():
        table.add_row(name, f"{score.loss:.4f}", f"{score.exact_match:.1%}")
    Console().print(table)
