"""Fields that this server knows and cannot honour, and fields that it does not know."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator

from server.api.wire.generation import refused
from server.http.fields import invalid

log = logging.getLogger(__name__)


def nothing_but(*harmless: Any, why: str = "this server does not support it") -> BeforeValidator:
    """Takes null and the values that ask for nothing, as null."""

    def check(value: Any) -> None:
        if value is not None and value not in harmless:
            raise invalid(f"{why}; leave it out")

    return BeforeValidator(check)


Unsupported = Annotated[None, nothing_but([], {}, False)]


def check_unknown(
    body: BaseModel, passed_on: Collection[str], named_otherwise: Mapping[str, str]
) -> None:
    """Refuses fields that have another name in this API; other unknown ones are ignored and their
    names logged, as in chats."""
    ignored = []
    for name, value in (body.model_extra or {}).items():
        if name in named_otherwise and value is not None:
            raise refused(name, f"its name here is {named_otherwise[name]}")
        if name not in passed_on:
            ignored.append(name)
    if ignored:
        log.info("ignored %d unknown request fields: %.200r", len(ignored), sorted(ignored))
