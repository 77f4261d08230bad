"""A result as Markdown for readers and JSON for machines. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine


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
    """Prints a result and returns it: the title with the day, the parts with content, the machine.

    With a `stem` it is also written, as `stem`.md, and as `stem`.json together with the figures.
    """
    machine = machine or describe_machine()
    shown = [f"# {title}, {machine['date'][:10]}", *parts, "## Machine", fields(machine)]
    markdown = "\n\n".join(str(part) for part in shown if part) + "\n"
    print(markdown)
    if stem is not None:
        result = [[p.header, *p.rows] if isinstance(p, Table) else p for p in parts if p]
        document = {"machine": machine, **figures, "result": result}
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=1, default=str)
        stem.with_name(stem.name + ".json").write_text(text + "\n", encoding="utf-8")
        stem.with_name(stem.name + ".md").write_text(markdown, encoding="utf-8")
    return markdown
