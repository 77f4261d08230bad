"""Parses JSON that strangers wrote. A byte string has one meaning or is refused."""

from __future__ import annotations

import json
import reprlib
from typing import NoReturn

from remix_runtime.errors import CheckpointFormatError

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def show(value: object) -> str:
    """A short printable form of any parsed value, for messages."""
    return _repr.repr(value)


def parse_object(data: bytes, *, file: str) -> dict[str, object]:
    """The JSON object in `data`. Duplicate keys, NaN, infinities and bad UTF-8 are errors."""

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result: dict[str, object] = {}
        for key, value in pairs:
            if key in result:
                raise CheckpointFormatError(f"{file}: key {show(key)} appears twice, expected once")
            result[key] = value
        return result

    def no_constant(name: str) -> NoReturn:
        raise CheckpointFormatError(f"{file}: found {name}, expected a finite number")

    try:
        value = json.loads(
            data.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant
        )
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and huge integers
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointFormatError(f"{file}: not valid JSON ({reason})") from None
    if not isinstance(value, dict):
        raise CheckpointFormatError(f"{file}: found {show(value)}, expected a JSON object")
    return value
