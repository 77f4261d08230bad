"""Reads one JSON value a character at a time, as it comes from a model."""

from __future__ import annotations

import json
import re
from enum import Enum, auto

_WHITESPACE = " \t\n\r"
_SCALAR = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null", re.ASCII)
_SCALAR_BEGUN = re.compile(
    r"-?(?:(?:0|[1-9]\d*)(?:(?:\.\d*)|(?:(?:\.\d+)?[eE][+-]?\d*))?)?"
    r"|t(?:r(?:u(?:e)?)?)?|f(?:a(?:l(?:s(?:e)?)?)?)?|n(?:u(?:l(?:l)?)?)?",
    re.ASCII,
)
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_ESCAPES = '"\\/bfnrt'
_HEX = "0123456789abcdefABCDEF"


class MalformedError(ValueError):
    """What came is no JSON."""


class _Wants(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    NEXT_OR_END = auto()
    NOTHING = auto()


class JsonText:
    """One value that grows. `depth` is how many objects and lists are open, `done` is true after
    the last character; a number at the top never ends."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._wants = _Wants.VALUE
        self._in_string = False
        self._is_key = False
        self._escaped = 0
        """0: no; 1: after a backslash; 2 to 5: so many digits of a code point, less one, remain."""
        self._scalar = ""

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def done(self) -> bool:
        return self._wants is _Wants.NOTHING

    @property
    def in_key(self) -> bool:
        """Whether a key of the outermost object is being read."""
        return self.depth == 1 and self._in_string and self._is_key

    @property
    def in_value(self) -> bool:
        """Whether a value of the outermost object is being read."""
        return self.depth > 1 or (self.depth == 1 and not self.in_key and self._in_leaf)

    @property
    def _in_leaf(self) -> bool:
        return self._in_string or bool(self._scalar)

    def feed(self, char: str) -> str:
        """Takes a character and returns it as JSON has it: models write line breaks into strings,
        which are escaped. Raises `MalformedError`, and nothing may be fed after that."""
        if self._in_string:
            return self._feed_string(char)
        if self._scalar:
            if _SCALAR_BEGUN.fullmatch(self._scalar + char):
                self._scalar += char
                return char
            if not _SCALAR.fullmatch(self._scalar):
                raise MalformedError
            self._scalar = ""
            self._value_ended()
        if char not in _WHITESPACE:
            self._feed_structure(char)
        return char

    def plain_until(self, text: str, at: int) -> int:
        """Where in `text`, from `at`, the characters end that only continue a string. They need not
        be fed."""
        if not self._in_string or self._escaped:
            return at
        run = _PLAIN.match(text, at)
        return at if run is None else run.end()

    def _feed_string(self, char: str) -> str:
        if self._escaped == 1:
            if char == "u":
                self._escaped = 5
            elif char in _ESCAPES:
                self._escaped = 0
            else:
                raise MalformedError
            return char
        if self._escaped:
            if char not in _HEX:
                raise MalformedError
            self._escaped = self._escaped - 1 if self._escaped > 2 else 0
            return char
        if char == "\\":
            self._escaped = 1
        elif char == '"':
            self._in_string = False
            if self._is_key:
                self._wants = _Wants.COLON
            else:
                self._value_ended()
        return json.dumps(char)[1:-1] if char < " " else char

    def _feed_structure(self, char: str) -> None:
        wants = self._wants
        if wants is _Wants.COLON and char == ":":
            self._wants = _Wants.VALUE
        elif wants is _Wants.NEXT_OR_END and char == ",":
            self._wants = _Wants.KEY if self._open[-1] == "{" else _Wants.VALUE
        elif char == '"' and wants not in (_Wants.COLON, _Wants.NEXT_OR_END, _Wants.NOTHING):
            self._in_string = True
            self._is_key = wants in (_Wants.KEY, _Wants.KEY_OR_END)
        elif char == "}" and wants in (_Wants.KEY_OR_END, _Wants.NEXT_OR_END):
            self._close("{")
        elif char == "]" and wants in (_Wants.VALUE_OR_END, _Wants.NEXT_OR_END):
            self._close("[")
        elif wants in (_Wants.VALUE, _Wants.VALUE_OR_END):
            self._begin_value(char)
        else:
            raise MalformedError

    def _begin_value(self, char: str) -> None:
        if char in "{[":
            self._open.append(char)
            self._wants = _Wants.KEY_OR_END if char == "{" else _Wants.VALUE_OR_END
        elif _SCALAR_BEGUN.fullmatch(char):
            self._scalar = char
        else:
            raise MalformedError

    def _close(self, kind: str) -> None:
        if self._open.pop() != kind:
            raise MalformedError
        self._value_ended()

    def _value_ended(self) -> None:
        self._wants = _Wants.NEXT_OR_END if self._open else _Wants.NOTHING
