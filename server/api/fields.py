"""`python -m server.api.fields`: what becomes of every field of every body, as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from server.api.wire.chat import ChatRequest
from server.api.wire.completions import CompletionRequest
from server.api.wire.others import ASK_NOTHING, TAKEN
from server.api.wire.tokens import DetokenizeRequest, TokenizeRequest

BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}

_INTRODUCTION = """\
# Fields of requests

Made by `python -m server.api.fields`; a test keeps it true. It holds for every engine: a value that
an engine cannot honour is a 400 that names the field.

- **honoured**: it does what OpenAI's or vLLM's documents say.
- **taken**: it cannot change the answer, whatever its value.
- **refused**: a 400 that names it, but for null and the values named, which ask for nothing.

A field that is not in the table is refused everywhere.
"""


def fate(body: type[BaseModel], field: str) -> str:
    """What becomes of a field in a body."""
    if field in _names(body):
        return "honoured"
    if field in TAKEN:
        return "taken"
    harmless = [f"`{json.dumps(value)}`" for value in ASK_NOTHING.get(field, ())]
    return f"refused but {', '.join(harmless)}" if harmless else "refused"


def table() -> Iterator[str]:
    """The lines of a table in Markdown."""
    fields = {*TAKEN, *ASK_NOTHING}.union(*map(_names, BODIES.values()))
    yield _row("Field", *(f"`{path}`" for path in BODIES))
    yield _row(*["---"] * (1 + len(BODIES)))
    for field in sorted(fields):
        yield _row(f"`{field}`", *(fate(body, field) for body in BODIES.values()))


def _names(body: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in body.model_fields.items()}


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def document() -> str:
    return "\n".join([_INTRODUCTION, *table(), ""])


if __name__ == "__main__":
    sys.stdout.write(document())
