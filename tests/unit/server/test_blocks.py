"""Blocks follow each other, however the text was cut."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from server.api.blocks import BlockKind, Blocks, Change, Closed, Grew, Opened
from server.api.parts import (
    AnswerParser,
    CallDelta,
    CallStart,
    Delta,
    ReasoningDelta,
    TextDelta,
)


class LetterParser(AnswerParser):
    """Small letters are words, large ones thoughts, digits begin calls, and what else follows
    those is arguments."""

    def __init__(self) -> None:
        self._calls = 0
        self._in_call = False

    def push(self, text: str) -> Iterable[Delta]:
        for letter in text:
            self._in_call = letter.isdigit() or (self._in_call and not letter.isalpha())
            if letter.islower():
                yield TextDelta(letter)
            elif letter.isupper():
                yield ReasoningDelta(letter)
            elif letter.isdigit():
                yield CallStart(self._calls, f"call-{self._calls}", letter)
                self._calls += 1
            elif self._in_call:
                yield CallDelta(self._calls - 1, letter)

    def close(self) -> Iterable[Delta]:
        return []


def changes_of(pieces: list[str]) -> tuple[list[Change], Blocks]:
    blocks = Blocks(LetterParser())
    changes = [change for piece in pieces for change in blocks.push(piece)]
    return [*changes, *blocks.close()], blocks


def seen(blocks: Blocks) -> list[tuple[BlockKind, str, str]]:
    return [(block.kind, block.name, block.text) for block in blocks.all]


def test_runs_and_calls() -> None:
    _, blocks = changes_of(["AB", "cd", "E", "1{}2[", "]x"])
    assert seen(blocks) == [
        (BlockKind.REASONING, "", "AB"),
        (BlockKind.TEXT, "", "cd"),
        (BlockKind.REASONING, "", "E"),
        (BlockKind.CALL, "1", "{}"),
        (BlockKind.CALL, "2", "[]"),
        (BlockKind.TEXT, "", "x"),
    ]
    assert [block.index for block in blocks.all] == list(range(6))


@given(st.lists(st.text("abAB12{}", max_size=6), max_size=8))
def test_one_is_open_at_a_time_and_cuts_change_nothing(pieces: list[str]) -> None:
    changes, blocks = changes_of(pieces)
    assert seen(blocks) == seen(changes_of(["".join(pieces)])[1])
    grown: dict[int, str] = {}
    current = None
    for change in changes:
        match change:
            case Opened(block):
                assert current is None
                assert block.index == len(grown)
                current, grown[block.index] = block, ""
            case Grew(block, text):
                assert block is current
                grown[block.index] += text
            case Closed(block):
                assert block is current
                current = None
    assert current is None
    assert list(grown.values()) == [block.text for block in blocks.all]
