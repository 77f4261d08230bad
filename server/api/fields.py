"""`python -m server.api.fields`: what becomes of every field of every body, as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping

from pydantic import BaseModel

from server.api.wire.chat import ChatRequest
from server.api.wire.completions import CompletionRequest
from server.api.wire.messages import OTHERS as MESSAGES
from server.api.wire.messages import CountTokensRequest, MessagesRequest
from server.api.wire.others import ASK_NOTHING, TAKEN
from server.api.wire.responses import OTHERS as RESPONSES
from server.api.wire.responses import ResponsesRequest
from server.api.wire.tokens import DetokenizeRequest, TokenizeRequest
from server.api.wire.translated import OtherFields

BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountTokensRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}

_OPENAI = OtherFields(
    passed_on=frozenset(), named_otherwise={}, ask_nothing=ASK_NOTHING, taken=TAKEN
)
_OTHERS: Mapping[type[BaseModel], OtherFields] = {
    ResponsesRequest: RESPONSES,
    MessagesRequest: MESSAGES,
    CountTokensRequest: MESSAGES,
}

_INTRODUCTION = """\
# Fields of requests

Made by `python -m server.api.fields`; a test keeps it true. It holds for every engine: a value that
an engine cannot honour is a 400 that names the field.

- **honoured**: it does what OpenAI's, Anthropic's or vLLM's documents say.
- **taken**: it cannot change the answer, whatever its value.
- **refused**: a 400 that names it, but for null and the values named, which ask for nothing.

A field that is not in the table is refused everywhere.
"""


def fate(body: type[BaseModel], field: str) -> str:
    """What becomes of a field in a body."""
    others = others_of(body)
    if field in _names(body):
        return "honoured"
    if field in others.passed_on:
        return fate(ChatRequest, field)
    if field in others.taken:
        return "taken"
    if field in others.named_otherwise:
        return f"refused: `{others.named_otherwise[field]}`"
    harmless = [f"`{json.dumps(value)}`" for value in others.ask_nothing.get(field, ())]
    return f"refused but {', '.join(harmless)}" if harmless else "refused"


def others_of(body: type[BaseModel]) -> OtherFields:
    """What becomes of the fields that are not the body's own."""
    return _OTHERS.get(body, _OPENAI)


def table() -> Iterator[str]:
    """The lines of a table in Markdown."""
    fields: set[str] = set()
    for body in BODIES.values():
        fields |= _names(body) | others_of(body).all
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
