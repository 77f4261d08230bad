"""How long the JSON of a value is, without a long call of C.

`json.dumps` of all the numbers that a body may have is a call of 0.1 s, or 0.2 s where they are
long. It stops all threads of the process until it ends. Here each call writes a few values.
"""

from __future__ import annotations

import json
import math
from typing import Any

_AT_ONCE = 64
"""Values that one call writes. An integer of 4,300 digits, the longest, takes 0.2 ms."""


def json_size(value: Any, *, ensure_ascii: bool = True, at_most: float = math.inf) -> int:
    """The characters that `json.dumps` writes for a value that was JSON, however deep it is. Where
    they are more than `at_most`, some number above it, found without a look at the rest."""
    encode = json.JSONEncoder(ensure_ascii=ensure_ascii).encode
    size, todo = 0, [value]
    plain: list[Any] = []
    while todo and size <= at_most:
        item = todo.pop()
        if isinstance(item, dict):
            size += max(2, 4 * len(item))  # {}, with a colon and a comma, each with a space
            todo += item
            todo += item.values()
        elif isinstance(item, list):
            size += max(2, 2 * len(item))
            todo += item
        else:
            plain.append(item)
        if len(plain) == _AT_ONCE or not todo:
            size += len(encode(plain)) - max(2, 2 * len(plain))
            plain.clear()
    return size
