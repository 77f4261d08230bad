"""What an adapter's defaults make of a request that says nothing else."""

from __future__ import annotations

from typing import TypeVar

from remix_runtime.contracts import AdapterDefaults
from server.api.wire.generation import GenerationBody

B = TypeVar("B", bound=GenerationBody)

_ELSEWHERE = frozenset({"chat_template", "max_tokens"})
"""A body has no template, and a length that no client asked for is cut to the context."""


def with_defaults(body: B, defaults: AdapterDefaults) -> B:
    """The body with the adapter's values in fields that are not given or null."""
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in defaults.given().items()
        if name not in _ELSEWHERE and getattr(body, name) is None
    }
    return body.model_copy(update=fields) if fields else body
