"""A field that makes a whole request wrong."""

from __future__ import annotations

from pydantic_core import PydanticCustomError


def refused(param: str, message: str) -> PydanticCustomError:
    """A validation error of the whole request that names one field."""
    return PydanticCustomError("remix_refused", "{reason}", {"reason": message, "param": param})
