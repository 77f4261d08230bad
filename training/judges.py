"""When an answer is right: by its text, its last number, the letter of a choice, or by tests.

A judge looks at the answer, and at the reference that the row teaches; `tests` at what the row has
in that field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Literal

from remix_runtime.errors import ConfigError, DataError
from training.code_tests import passes

JudgeName = Literal["exact", "number", "choice", "tests"]
JUDGES: dict[JudgeName, str] = {
    "exact": "exact match",
    "number": "right number",
    "choice": "right choice",
    "tests": "tests passed",
}
"""What a share of right answers is called."""
Judge = Callable[[str], bool]
"""Takes an answer."""

_NUMBER = re.compile(
    r"(?:(?<![\w).])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d[\d_]*)(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\w))?"
)
"""A minus behind a digit, a letter or a parenthesis is no sign; commas are before thousands."""
_LETTER = r"\(?\b(?!I\s+[a-z]|I['’])([A-Z])\b"  # "I think" chooses nothing
_CHOICES = (
    (re.compile(rf"(?i:answer)(?i:\s+is)?\s*[:=]?\s*{_LETTER}"), -1),
    (re.compile(rf"^\W*{_LETTER}(?=\W*$|[).:,\n])", re.MULTILINE), 0),
    (re.compile(rf"(?i:option|choice)(?i:\s+is)?\s*[:=]?\s*{_LETTER}"), -1),
    (re.compile(r"\(([A-Z])\)"), -1),
)
"""How a letter is chosen, in the order in which it is looked for, and which match counts: the last
that is named as the answer, the first at the start of a line, the last named as an option, the last
in parentheses."""
_BOXED = re.compile(r"\\boxed\s*\{([^{}]*)\}")
_MARKS = re.compile(r"[*$`]")
"""Of Markdown and LaTeX, around a letter."""


def as_judge(name: str, *, may_run_code: bool) -> JudgeName:
    """Raises `ConfigError` for a name that is none, and for tests without leave to run code."""
    if name not in JUDGES:
        raise ConfigError(f"score: found {name!r:.100}, expected one of {', '.join(JUDGES)}")
    if name == "tests" and not may_run_code:
        raise ConfigError(
            "score: found tests, which run here what the model writes; expected --run-code with it"
        )
    return name


def judge_of(name: JudgeName, reference: str, row: dict[str, Any], *, is_whole: bool) -> Judge:
    """The judge of one row's answers. An answer to a row that lost its end, which is not whole, may
    go on. Raises `DataError` for a row that the judge cannot use."""
    match name:
        case "exact":
            return (
                (lambda answer: answer == reference)
                if is_whole
                else (lambda answer: answer.startswith(reference))
            )
        case "number":
            number = _found(last_number(reference), "a number", reference)
            return lambda answer: last_number(answer) == number
        case "choice":
            letter = _found(chosen_letter(reference), "the letter of a choice", reference)
            return lambda answer: chosen_letter(answer) == letter
        case "tests":
            tests = _tests_of(row)
            return lambda answer: passes(answer, tests)


def _tests_of(row: dict[str, Any]) -> str:
    tests = row.get("tests")
    lines = [tests] if isinstance(tests, str) else tests
    if isinstance(lines, list) and all(isinstance(line, str) for line in lines):
        text = "\n".join(lines)
        if text.strip():
            return text
    raise DataError(
        "tests: expected Python with assertions, a text or a list of texts (columns maps another "
        "name)"
    )


def last_number(text: str) -> Decimal | None:
    """The last number in a text."""
    found = _NUMBER.findall(text.replace("−", "-"))
    return Decimal(found[-1].replace(",", "").replace("_", "")) if found else None


def chosen_letter(text: str) -> str | None:
    """The capital letter that a text chooses."""
    plain = _MARKS.sub("", _BOXED.sub(r"(\1)", text))
    for pattern, which in _CHOICES:
        if found := pattern.findall(plain):
            return str(found[which])
    return None


def _found(value: Any, expected: str, reference: str) -> Any:
    if value is None:
        raise DataError(f"completion: found {reference!r:.100}, expected {expected} in it")
    return value
