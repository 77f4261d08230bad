"""Objects that are told apart by their `type`, with errors that name the field and nothing else.

Tags of such unions are written <so>: paths of errors leave them out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, BeforeValidator, Discriminator

from server.api.wire.refusal import refused
from server.http.fields import invalid


class Kinds:
    """Tags by the `type` of an object. `what` such objects are called; `untyped` is the tag of one
    without a type, if there may be such."""

    def __init__(
        self,
        what: str,
        tags: Mapping[str, str],
        untyped: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._what = what
        self._tags = tags
        self._untyped = untyped

    @property
    def known(self) -> BeforeValidator:
        """Refuses other types by their names."""
        return BeforeValidator(self.check)

    @property
    def tags(self) -> Discriminator:
        return Discriminator(self.tag)

    def check(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, dict):
            raise invalid("expected an object")
        kind = value.get("type")
        if kind is None and self._untyped is not None:
            return value
        if not isinstance(kind, str):
            raise refused("type", f"expected one of {', '.join(self._tags)}")
        if kind not in self._tags:
            raise refused(
                "type", f"this server does not support {self._what} of type {kind[:100]!r}"
            )
        return value

    def tag(self, value: Any) -> str:
        fields = dict(value) if isinstance(value, BaseModel) else value
        kind = fields.get("type")
        if kind is None and self._untyped is not None:
            return self._untyped(fields)
        return self._tags[str(kind)]
