"""Regular expressions for module names, which strangers wrote. They are matched in linear time, by
the Rust engine that pydantic has: Python's own may need ages for one name.

Only what both engines read alike is taken: characters, `.`, escapes, sets, groups, alternatives,
repetitions. Names of modules are ASCII, and so is what a pattern means here.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from pydantic_core import SchemaError, SchemaValidator, core_schema

from remix_runtime.adapter.checkpoint.strict_json import show

EXPECTED = (
    "a regular expression of characters, sets, groups, alternatives and repetitions, those of a "
    "number below 10 and of one character"
)
MAX_PATTERN = 1024
_MAX_DEPTH = 32

_TOKEN = re.compile(
    r"""
    (?P<class> \\[dw] | \[ (?: (?!--) [A-Za-z0-9_.-] | \\[dw.-] )+ \] )
  | (?P<atom>  [A-Za-z0-9_.-] | \\[.-] | \[\^ (?: (?!--) [A-Za-z0-9_.-] | \\[.-] )+ \] )
  | (?P<border> \\b )
  | (?P<open>  \( (?:\?:)? )
  | (?P<close> \) )
  | (?P<counted> \{ [0-9] (?:,[0-9]?)? \} \?? )
  | (?P<repeated> [*+?] \?? )
  | (?P<other> [|^$] )
    """,
    re.VERBOSE,
)
_BEFORE = {"counted": ("class", "atom"), "repeated": ("class", "atom", "close")}
"""What may be repeated. A counted group would be as large as its counts multiplied."""


def name_pattern(pattern: str, *, is_suffix: bool = False) -> Callable[[str], bool]:
    """Whether `pattern` fits a whole name, or with `is_suffix` its last components.

    Raises `ValueError`, which says what was found in the place of what.
    """
    whole = rf"(?:.*\.)?(?:{_ascii(pattern)})" if is_suffix else _ascii(pattern)
    schema = core_schema.str_schema(pattern=rf"\A(?:{whole})\z", regex_engine="rust-regex")
    try:
        return SchemaValidator(schema).isinstance_python
    except SchemaError:
        raise ValueError(f"found {show(pattern)}, expected {EXPECTED}") from None


def _ascii(pattern: str) -> str:
    """The pattern with classes of ASCII. Raises `ValueError`."""
    parts, before, depth, position = [], "", 0, 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        kind = "" if token is None else str(token.lastgroup)
        depth += (kind == "open") - (kind == "close")
        is_too_deep = not 0 <= depth <= _MAX_DEPTH
        if token is None or is_too_deep or before not in _BEFORE.get(kind, (before,)):
            raise ValueError(
                f"found {show(pattern[position : position + 8])} in {show(pattern)}, "
                f"expected {EXPECTED}"
            )
        parts.append(f"(?-u:{token[0]})" if kind in ("class", "border") else token[0])
        before, position = kind, token.end()
    if depth or len(pattern) > MAX_PATTERN:
        raise ValueError(
            f"found {show(pattern)}, expected {EXPECTED}, of at most {MAX_PATTERN} characters, "
            "every group of it closed"
        )
    return "".join(parts)
