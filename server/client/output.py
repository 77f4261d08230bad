"""Answers for people: tables. For scripts: the API's JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import typer

Row = Sequence[object]


def print_json(answer: Any) -> None:
    typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def print_answer(answer: Any, text: str, *, as_json: bool) -> None:
    """Prints what `text` says of the answer, or the JSON."""
    if as_json:
        print_json(answer)
    else:
        typer.echo(text)


def print_list(
    answer: Any,
    columns: Sequence[str],
    row: Callable[[Any], Row],
    *,
    empty: str,
    as_json: bool,
) -> None:
    """Prints what the API lists under `data`: a table with a `row` for each, or the JSON."""
    if as_json:
        print_json(answer)
    else:
        print_table(columns, [row(item) for item in answer["data"]], empty=empty)


def print_table(columns: Sequence[str], rows: Sequence[Row], *, empty: str) -> None:
    """Prints a table, or `empty` where there are no rows."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not markup: names and sources may have brackets.
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:  # a pipe has no width
        console.width = 200
    console.print(table)


def print_fields(answer: Mapping[str, Any]) -> None:
    """Prints one thing as a table of its fields; those of a field are `field.name`."""
    print_table(("field", "value"), list(_fields(answer, "")), empty="")


def _fields(answer: Mapping[str, Any], prefix: str) -> Iterator[Row]:
    for name, value in answer.items():
        if isinstance(value, Mapping):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{name}", text


def short(digest: str) -> str:
    """Enough of a digest to tell it from others."""
    return digest[:12]


def print_diff(before: Mapping[str, str], after: Mapping[str, str], *, err: bool) -> bool:
    """Prints what changes between two sets, on stderr if `err`. Returns whether anything does."""
    changes = False
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new:
            continue
        changes = True
        if old is not None:
            typer.secho(f"- {name}: {short(old)}", fg="red", err=err)
        if new is not None:
            typer.secho(f"+ {name}: {short(new)}", fg="green", err=err)
    return changes
