"""A result as Markdown for readers and JSON for machines. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine

MACHINE = "## Machine"
"""The heading of the last part of every result."""


@dataclass(frozen=True, slots=True)
class Table:
    header: Sequence[object]
    rows: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(
            "| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines
        )


def fields(values: Mapping[str, object]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in values.items())


def publish(
    stem: Path | None,
    title: str,
    *parts: str | Table,
    machine: Mapping[str, Any] | None = None,
    **figures: Any,
) -> str:
    """Prints a result and returns it, as `write` makes it. With a `stem` it is also written."""
    markdown = write(stem, title, *parts, machine=machine, **figures)
    print(markdown)
    return markdown


def write(
    stem: Path | None,
    title: str,
    *parts: str | Table,
    machine: Mapping[str, Any] | None = None,
    **figures: Any,
) -> str:
    """Returns a result: the title with the day, the parts with content, the machine.

    With a `stem` it is written as `stem`.md, and as `stem`.json together with the figures; each
    file is whole at any moment.
    """
    machine = machine or describe_machine()
    shown = [f"# {title}, {machine['date'][:10]}", *parts, MACHINE, fields(machine)]
    markdown = "\n\n".join(str(part) for part in shown if part) + "\n"
    if stem is not None:
        result = [[p.header, *p.rows] if isinstance(p, Table) else p for p in parts if p]
        document = {"machine": machine, **figures, "result": result}
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, default=str)
        _replace(stem.with_name(stem.name + ".json"), text + "\n")
        _replace(stem.with_name(stem.name + ".md"), markdown)
    return markdown


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
