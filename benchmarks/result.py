"""A result as Markdown for readers and JSON for machines. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines
    )


def fields(values: Mapping[str, object]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in values.items())


def write_result(
    stem: Path | None,
    title: str,
    parts: Iterable[str],
    machine: Mapping[str, Any],
    figures: Mapping[str, Any],
) -> str:
    """The Markdown of a result: the title with the day, the parts that are not empty, the machine.

    With a `stem` it is written to `stem`.md, and machine and figures to `stem`.json.
    """
    title = f"# {title}, {machine['date'][:10]}"
    sections = [title, *filter(None, parts), "## Machine\n\n" + fields(machine)]
    markdown = "\n\n".join(sections) + "\n"
    if stem is not None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        document = json.dumps({"machine": machine, **figures}, indent=1)
        stem.with_name(stem.name + ".json").write_text(document + "\n", encoding="utf-8")
        stem.with_name(stem.name + ".md").write_text(markdown, encoding="utf-8")
    return markdown
