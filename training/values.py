"""Values of a row, and what they are called in errors."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

from remix_runtime.errors import DataError


def text_of(row: dict[str, Any], key: str, where: str) -> str:
    """A field that holds text. Raises `DataError` that calls it `where`."""
    if key not in row:
        raise DataError(f"{where}: found nothing, expected a string")
    value = row[key]
    if not isinstance(value, str):
        raise DataError(f"{where}: found {kind_of(value)}, expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{where}: found a lone surrogate, expected valid Unicode") from None
    return value


def json_of(value: Any, where: str) -> Any:
    """What the server would read of a value, or of the JSON that a text is. Raises `DataError`."""
    try:
        text = value if isinstance(value, str) else json.dumps(value)
        found = from_json(text, allow_inf_nan=False)
        json.dumps(found, allow_nan=False)  # 1e400 was read as infinity
        return found
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON: {error}") from None


def kind_of(value: Any) -> str:
    """What a JSON value is, for a message."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")
