"""Reads one call of a tool a character at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from pydantic_core import from_json

from server.api.tools.json_text import JsonText, MalformedError

MAX_UNDECIDED = 4096
"""So many characters may pass before it is clear that something is a call: all of them are held
back meanwhile, and may be read again."""

_NAME = "name"
_ARGUMENTS = ("arguments", "parameters")
_KEYS = (_NAME, *_ARGUMENTS, "type", "id")

EXACT_BEGINNING = (
    r'\{{[ \n\t\r]*"name"[ \n\t\r]*:[ \n\t\r]*"{name}"[ \n\t\r]*,[ \n\t\r]*'
    r'"(arguments|parameters)"[ \n\t\r]*:'
)
"""How a call of a strict tool begins, as an expression that grammars and this parser share."""


class NotACallError(ValueError):
    """It was something else, and nothing was told of it."""


class CallText(ABC):
    """One call that grows. It is told of (`begun`) once it is sure to be a call of one of the
    tools; then its arguments come as they are written."""

    def __init__(self) -> None:
        self.raw = ""
        """All that was fed, as long as the call has not begun."""
        self.name: str | None = None
        self.begun = False
        self.done = False
        self._json = JsonText()
        self._new: list[str] = []

    def feed(self, char: str) -> bool:
        """Takes a character. Returns false for one that is not part of the call, which is over.
        Raises `NotACallError` before the call has begun, `MalformedError` inside its arguments."""
        if not self.begun:
            self.raw += char
            if len(self.raw) > MAX_UNDECIDED:
                raise NotACallError
        return self._feed(char)

    def plain_until(self, text: str, at: int) -> int:
        """Where in `text`, from `at`, what only continues a text in the arguments ends. It need not
        be fed."""
        return self._json.plain_until(text, at) if self.begun and self._in_arguments else at

    def take(self) -> str:
        """The arguments that have come since the last time."""
        new, self._new = "".join(self._new), []
        return new

    @property
    @abstractmethod
    def _in_arguments(self) -> bool: ...

    @abstractmethod
    def _feed(self, char: str) -> bool: ...


class BareArguments(CallText):
    """The arguments of a call whose name is known."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.begun = name, True

    @property
    def _in_arguments(self) -> bool:
        return True

    def _feed(self, char: str) -> bool:
        self._new.append(self._json.feed(char))
        self.done = self._json.done
        return True


class CallObject(CallText):
    """`{"name": …, "arguments": {…}}`, with `parameters` too, in any order. Arguments that are JSON
    in a string are read, and those that are left out are empty.

    `strict` are tools that a grammar holds to their schema where a call begins as `EXACT_BEGINNING`
    has it; another beginning is no call.
    """

    def __init__(self, names: Collection[str], strict: Collection[str]) -> None:
        super().__init__()
        self._names, self._strict = names, strict
        self._key = ""
        """The last key of the object, or the part of it that has come."""
        self._value = ""
        """The value of that key, as far as it has come."""
        self._held: str | None = None
        """Arguments that wait for the name, or for their end."""
        self._arguments_over = False

    @property
    def _in_arguments(self) -> bool:
        return self._key in _ARGUMENTS and not self._arguments_over and self._json.in_value

    def _feed(self, char: str) -> bool:
        try:
            self._step(char)
        except MalformedError:
            if not self.begun:
                raise NotACallError from None
            if not self._arguments_over:
                raise
            # Small models forget the last brace; the call is whole without it.
            self.done = True
            return False
        return True

    def _step(self, char: str) -> None:
        was_key, was_value = self._json.in_key, self._json.in_value
        written = self._json.feed(char)
        if was_key:
            self._read_key(written)
        elif was_value:
            self._read_value(written)
        elif self._json.in_key:
            self._key = ""
        elif self._json.in_value:
            self._value = ""
            self._read_value(written)
        if self._json.done:
            self._end()

    def _read_key(self, written: str) -> None:
        if self._json.in_key:
            self._key += written
            known = any(key.startswith(self._key) for key in _KEYS)
        else:
            known = self._key in _KEYS
        if not known and not self.begun:
            raise NotACallError

    def _read_value(self, written: str) -> None:
        ended = not self._json.in_value
        # What ends a number is not part of it. What was passed on need not be kept.
        if not self._value or (not self.begun and (not ended or self._value[0] in '"{[')):
            self._value += written
        if self._key == _NAME and ended and not self.begun:
            self._read_name()
        elif self._key in _ARGUMENTS and not self._arguments_over:
            self._read_arguments(written, ended=ended)

    def _read_name(self) -> None:
        name = _read(self._value)
        if not isinstance(name, str) or name not in self._names:
            raise NotACallError
        self.name = name
        if self._held is not None:
            self._begin(self._held)

    def _read_arguments(self, written: str, *, ended: bool) -> None:
        self._arguments_over = ended
        if self.begun:
            self._new.append(written)
        elif self._value[0] == "{" and self.name is not None:
            self._begin(self._value)
        elif ended:
            self._held = _object_of(self._value)
            if self.name is not None:
                self._begin(self._held)

    def _begin(self, arguments: str) -> None:
        assert self.name is not None
        if self.name in self._strict and not _begins_exactly(self.raw, self.name):
            raise NotACallError
        self.begun = True
        self._new.append(arguments)
        self.raw = ""

    def _end(self) -> None:
        if not self.begun:
            if self.name is None or self._held is not None:
                raise NotACallError
            self._begin("{}")
        self.done = True


def _object_of(value: str) -> str:
    """The object that a value of arguments is, as JSON. Raises `NotACallError`."""
    parsed = _read(value)
    if isinstance(parsed, str):
        value, parsed = parsed, _read(parsed)
    if parsed is None:
        return "{}"
    if not isinstance(parsed, dict):
        raise NotACallError
    return value


def _read(value: str) -> Any:
    try:
        return from_json(value, allow_inf_nan=False)
    except ValueError:  # too deep, or half a surrogate pair
        raise NotACallError from None


def _begins_exactly(raw: str, name: str) -> bool:
    expression = EXACT_BEGINNING.format(name=re.escape(name))
    return re.fullmatch(expression + r"[ \n\t\r]*\{", raw) is not None
