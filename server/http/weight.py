"""Bounds what the parts of a body's JSON cost, by a look at its bytes.

A body of 4 MiB may be one text, or a million lists. Parsing the one takes no time; parsing the
other is a call of C, which stops all threads of the process until it ends.
"""

from __future__ import annotations

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

_BLOCK = 1 << 16


def require_light(text: bytes) -> None:
    """Raises `ApiError` for JSON of more parts than are allowed. Other text may pass, or not."""
    if _is_light(*_marks(text)):  # whatever of it is in texts
        return
    values = containers = members = 0
    inside = False
    # A quote that is left begins or ends a text.
    bare = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    for start in range(0, len(bare), _BLOCK):
        parts = bare[start : start + _BLOCK].split(b'"')
        found = _marks(b"".join(parts[inside::2]))
        values, containers, members = values + found[0], containers + found[1], members + found[2]
        inside ^= len(parts) % 2 == 0
        if not _is_light(values, containers, members):
            raise _too_complex(
                f"the body's JSON has more than {MAX_VALUES} values, {MAX_CONTAINERS} lists and "
                f"objects or {MAX_MEMBERS} members of objects"
            )


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


def _marks(text: bytes) -> tuple[int, int, int]:
    return text.count(b","), text.count(b"[") + text.count(b"{"), text.count(b":")


def _is_light(values: int, containers: int, members: int) -> bool:
    return values <= MAX_VALUES and containers <= MAX_CONTAINERS and members <= MAX_MEMBERS


def _too_complex(message: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, message, code="body_too_complex")
