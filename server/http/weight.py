"""Bounds what the parts of JSON cost, a body's or that of texts in it, by a look at its bytes.

A body of 4 MiB may be one text, or a million lists. Parsing the one takes no time; parsing the
other is a call of C, which stops all threads of the process until it ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

from server.http.errors import ApiError

MAX_VALUES = 1 << 18
"""Items of all lists and objects together."""
MAX_CONTAINERS = 1 << 15
"""Lists and objects."""
MAX_MEMBERS = 1 << 15
"""Members of all objects together."""
MAX_OWN_MEMBERS = 1 << 12
"""Members of one object."""

TOO_HEAVY = (
    f"has more than {MAX_VALUES} values, {MAX_CONTAINERS} lists and objects or {MAX_MEMBERS} "
    f"members of objects"
)
"""Said of JSON that is not light."""

_BLOCK = 1 << 16
_Marks = tuple[int, int, int]
"""Commas, opening brackets, colons."""


def require_light(text: bytes) -> None:
    """Raises `ApiError` for a body that is not light."""
    if not is_light([text]):
        raise _too_complex(f"the body's JSON {TOO_HEAVY}")


def is_light(texts: Sequence[bytes]) -> bool:
    """Whether texts of JSON have no more parts together than are allowed. What is no JSON may be
    light, or not."""
    if _are_few(map(_marks, texts)):  # whatever of it is in texts
        return True
    return _are_few(found for text in texts for found in _bare_marks(text))


def require_small_objects(value: Any) -> None:
    """Raises `ApiError` for an object of too many members: each of them may be told as a mistake of
    its own."""
    todo: list[Any] = [value] if isinstance(value, dict | list) else []
    while todo:
        item = todo.pop()
        if isinstance(item, dict) and len(item) > MAX_OWN_MEMBERS:
            raise _too_complex(
                f"found an object of {len(item)} members, expected at most {MAX_OWN_MEMBERS}"
            )
        inner = item.values() if isinstance(item, dict) else item
        todo += [each for each in inner if isinstance(each, dict | list)]


def _bare_marks(text: bytes) -> Iterator[_Marks]:
    """Marks outside of texts, block by block."""
    inside = False
    # A quote that is left begins or ends a text.
    bare = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    for start in range(0, len(bare), _BLOCK):
        parts = bare[start : start + _BLOCK].split(b'"')
        yield _marks(b"".join(parts[inside::2]))
        inside ^= len(parts) % 2 == 0


def _marks(text: bytes) -> _Marks:
    return text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")


def _are_few(found: Iterable[_Marks]) -> bool:
    values = containers = members = 0
    for more in found:
        values, containers, members = values + more[0], containers + more[1], members + more[2]
        if values > MAX_VALUES or containers > MAX_CONTAINERS or members > MAX_MEMBERS:
            return False
    return True


def _too_complex(message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="body_too_complex")
