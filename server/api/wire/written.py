"""Lists in answers whose items are JSON already, each written by itself.

An answer may have half a million log-probabilities. As models they would take seconds, and a call
of C that writes all of them would stop every thread until it ends.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, PlainSerializer, WrapValidator
from pydantic_core import to_json

T = TypeVar("T")


class Written(list[Any]):
    """Each item is the text of a JSON value."""


_FOUND = "written"
# Nobody can guess it, so no text of an answer has it.
_MARK = f"{secrets.token_hex(16)}-"
_MARKS = re.compile(f'"{_MARK}([0-9]+)"')


def _mark(items: Written, found: list[Written]) -> str:
    found.append(items)
    return f"{_MARK}{len(found) - 1}"


def _write(value: Any, info: Any) -> Any:
    if not isinstance(value, Written):
        return value
    if info.context is None:
        return list(map(json.loads, value))
    return _mark(value, info.context[_FOUND])


WrittenList = Annotated[
    list[T],
    WrapValidator(lambda value, check: value if isinstance(value, Written) else check(value)),
    # Without a return type it is described as the list that it is.
    PlainSerializer(lambda value, info: _write(value, info)),
]
"""A list that may be `Written`."""


def write_json(document: BaseModel | Mapping[str, Any], *, exclude: set[str] | None = None) -> str:
    """The JSON of an answer, or of an event."""
    found: list[Written] = []
    context = {_FOUND: found}
    if isinstance(document, BaseModel):
        text = document.model_dump_json(context=context, exclude=exclude, by_alias=True)
    else:
        fields = {
            name: _mark(value, found) if isinstance(value, Written) else value
            for name, value in document.items()
        }
        text = to_json(fields, context=context, by_alias=True).decode()
    if not found:
        return text
    pieces = _MARKS.split(text)  # every second one is a number
    pieces[1::2] = [f"[{','.join(found[int(number)])}]" for number in pieces[1::2]]
    return "".join(pieces)
