"""`remix train` and `remix eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remix_runtime.admin_api import DEFAULT_URL, Url
from training.publish import options
from training.publish.gate import MARGIN


def _list_settings(wanted: bool) -> None:
    """Prints every field of `TrainConfig` and ends the command."""
    if not wanted:
        return
    from rich.console import Console
    from rich.table import Table

    from training.config import TrainConfig

    table = Table("setting", "default", "meaning")
    for name, field in TrainConfig.model_fields.items():
        default = "required" if field.is_required() else str(field.default)
        table.add_row(name, default, " ".join((field.description or "").split()))
    Console().print(table)
    raise typer.Exit


def train(
    config: Annotated[
        Path, typer.Argument(help="YAML file: base, data, output and any other setting.")
    ],
    settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            help="List every setting with its default.",
            callback=_list_settings,
            is_eager=True,
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Write nothing: say what a step takes, and show rows as they will be learned.",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the last saved state, e.g. after a crash."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Delete an earlier run in the output folder first.")
    ] = False,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the adapter there at the end, in private."),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that --push-to-hub makes is public.")
    ] = False,
    publish: Annotated[
        str | None,
        typer.Option(
            metavar="TENANT/NAME",
            help="Make the adapter live on a server at the end, as `remix publish` does.",
        ),
    ] = None,
    publish_margin: Annotated[float, options.margin("--publish-margin")] = MARGIN,
    publish_share: Annotated[float | None, options.share("--publish-share")] = None,
    publish_bake_seconds: Annotated[
        float | None, options.bake_seconds("--publish-bake-seconds")
    ] = None,
    publish_bake_requests: Annotated[
        int | None, options.bake_requests("--publish-bake-requests")
    ] = None,
    publish_source: Annotated[str | None, options.source("--publish-source")] = None,
    publish_wait: Annotated[bool, options.wait("--publish-wait/--no-publish-wait")] = True,
    url: Url = DEFAULT_URL,
) -> None:
    """Train a ReMix adapter (or a baseline) on rows of text or chats.

    CONFIG is a YAML file. Three settings are needed, paths relative to the file:

    \b
    base: path/to/base-model
    data: rows.jsonl
    output: runs/my-adapter

    \b
    Data is JSONL, or Parquet, CSV, Arrow, a folder of them, a data set's
    name on the hub. Each row has one of three forms, or TRL's or
    ShareGPT's of them:
    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, ...]}
    {"text": "..."}

    \b
    The adapter is written to OUTPUT/adapter, ready for `remix serve`.
    Beside it stand metrics.jsonl, plots, TensorBoard logs and the
    states that --resume goes on from.

    \b
    With --publish the exit code is 0 when the adapter is live, 3 when it
    is not better than what is live, 4 when its canary was rolled back.
    """
    from rich.console import Console

    from remix_runtime.errors import ConfigError
    from remix_runtime.extras import require_extra
    from remix_runtime.imports import large_imports

    require_extra("remix train", "train", "matplotlib", "tensorboard")
    from training.progress import stage

    console = Console()
    with stage(console, "loading PyTorch and transformers"), large_imports():
        from training import dry_run as rehearsal
        from training.config import load_config
        from training.push import push, require_pushable
        from training.run import run_training
    run = load_config(config)
    if push_to_hub is not None:
        require_pushable(push_to_hub, run)
    elif public:
        raise ConfigError("public: found without --push-to-hub, expected both or neither")
    publisher = None
    if publish is not None:
        from training.publish.after_training import Publisher
        from training.publish.publication import Plan

        plan = Plan(
            margin=publish_margin,
            canary=options.canary_of(publish_share, publish_bake_seconds, publish_bake_requests),
            source=publish_source,
            waits=publish_wait,
        )
        publisher = Publisher(run, publish, url, plan, console)
        publisher.require_ready()
    if dry_run:
        rehearsal.dry_run(run, console)
        return
    result = run_training(run, resume=resume, overwrite=overwrite, console=console)
    if not result.rows:
        return  # another process of the run writes, and tells what
    if result.adapter is None:
        console.print(
            f"trained; see {run.output} (a softmax mixture is a baseline: it is not servable, "
            "so no adapter was written)",
            markup=False,
        )
    else:
        console.print(
            f"adapter {result.digest} written to {result.adapter}", markup=False, soft_wrap=True
        )
        if push_to_hub is not None:
            with stage(console, f"uploading it to {push_to_hub}"):
                address = push(result.adapter, push_to_hub, public=public)
            console.print(f"pushed: {address}", markup=False, soft_wrap=True)
        if publisher is not None:
            raise typer.Exit(publisher.publish(result.adapter))


def evaluate(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as `remix train` writes it.")],
    data: Annotated[
        Path, typer.Argument(help="Rows, as the training data: a file, a folder, a hub name.")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, folder or hub id. Default: the one the adapter names."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    subset: Annotated[
        str | None, typer.Option(help="Which of the data sets that a hub's name stands for.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at a time.")] = 16,
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Longest row, in tokens. Default: 2048, or the base's context."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which part of the data, as test or test[:100].")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="A file's own names, as in prompt=question,completion=answer.")
    ] = "",
    score: Annotated[
        str,
        typer.Option(
            help="When an answer is right: exact (the reference's text), number (its last number), "
            "choice (its letter), tests (Python that ends well with the row's tests)."
        ),
    ] = "exact",
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of an answer. Default: the reference's and 8; 256 for others."),
    ] = None,
    run_code: Annotated[
        bool,
        typer.Option(
            "--run-code",
            help="Let --score tests run what the model writes: here, with your rights, bounded in "
            "time and memory but not isolated.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object and no table.")
    ] = False,
) -> None:
    """Compare an adapter with its base model on rows.

    \b
    Prints the mean completion loss (nats per token, lower is better)
    and the share of rows whose greedy answer is right, both as the
    serving engine has them.
    """
    import json
    import sys
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from remix_runtime.imports import large_imports

    with large_imports():
        from training.columns import columns_of
        from training.evaluation import compare_with_base
        from training.judges import JUDGES, as_judge

    judge = as_judge(score, may_run_code=run_code)
    console = Console(stderr=True, quiet=not sys.stderr.isatty())
    scores = compare_with_base(
        adapter,
        data,
        base=base,
        limit=limit,
        batch_size=batch_size,
        max_length=max_length,
        columns=columns_of(columns),
        split=split,
        subset=subset,
        judge=judge,
        max_tokens=max_tokens,
        console=console,
    )
    if as_json:
        typer.echo(json.dumps({name: asdict(found) for name, found in scores.items()}))
        return
    title = Text(f"{data.name}, {scores['base'].rows} rows")
    table = Table("", "loss", JUDGES[judge], title=title)
    for name, found in scores.items():
        table.add_row(name, f"{found.loss:.4f}", f"{found.accuracy:.1%}")
    Console().print(table)
