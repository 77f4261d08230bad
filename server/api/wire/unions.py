"""Unions of objects by their `type`, with errors that name the field and nothing else.

The tags of such unions are written <so>: paths of errors leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from server.http.fields import invalid

OTHER = "<other>"
"""The tag of what has none of the types."""


def field_of(value: Any, name: str) -> Any:
    """A field of an object, or of a model of one; None where there is none."""
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def kind_by_type(tags: Mapping[str, str]) -> Callable[[Any], str]:
    """The tag of an object, or of a model of one, by its `type`."""

    def kind(value: Any) -> str:
        given = field_of(value, "type")
        return tags.get(given, OTHER) if isinstance(given, str) else OTHER

    return kind


def refuse_type(what: str) -> Callable[[str], str]:
    """A validator of a `type` that nothing else took."""

    def refuse(value: str) -> str:
        raise invalid(f"this server does not support {what} of type {value[:100]!r}")

    return refuse
