"""The blocks of an answer, one after the other: a run of words, a run of thoughts, a call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from server.api.parts import (
    AnswerParser,
    CallDelta,
    CallStart,
    Delta,
    ReasoningDelta,
    TextDelta,
)


class BlockKind(Enum):
    TEXT = auto()
    REASONING = auto()
    CALL = auto()


@dataclass(slots=True)
class Block:
    kind: BlockKind
    index: int
    """Among all blocks of the answer."""
    id: str = ""
    """A call's, and with it its name."""
    name: str = ""
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Words, thoughts, or the arguments of a call as JSON."""
        return "".join(self.texts)


@dataclass(frozen=True, slots=True)
class Opened:
    block: Block


@dataclass(frozen=True, slots=True)
class Grew:
    block: Block
    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    block: Block


Change = Opened | Grew | Closed


class Blocks:
    """The blocks of one choice while its text grows. One is open at a time."""

    def __init__(self, parser: AnswerParser) -> None:
        self.all: list[Block] = []
        self._parser = parser
        self._calls: list[Block] = []
        self._open: Block | None = None

    def push(self, text: str) -> Iterator[Change]:
        """Takes more text. What it changes is done when the changes are taken."""
        return self._changes(self._parser.push(text))

    def close(self) -> Iterator[Change]:
        """Takes the end of the text."""
        yield from self._changes(self._parser.close())
        yield from self._close_open()

    def empty(self) -> Iterator[Change]:
        """A run of no words, for an answer that must have a block."""
        yield from self._begin(Block(BlockKind.TEXT, len(self.all)))
        yield from self._close_open()

    def _changes(self, deltas: Iterable[Delta]) -> Iterator[Change]:
        for delta in deltas:
            match delta:
                case TextDelta():
                    yield from self._grow_run(BlockKind.TEXT, delta.text)
                case ReasoningDelta():
                    yield from self._grow_run(BlockKind.REASONING, delta.text)
                case CallStart():
                    block = Block(BlockKind.CALL, len(self.all), delta.id, delta.name)
                    self._calls.append(block)
                    yield from self._begin(block)
                case CallDelta():
                    yield self._grow(self._calls[delta.index], delta.arguments)

    def _grow_run(self, kind: BlockKind, text: str) -> Iterator[Change]:
        block = self._open
        if block is None or block.kind is not kind:
            block = Block(kind, len(self.all))
            yield from self._begin(block)
        yield self._grow(block, text)

    def _begin(self, block: Block) -> Iterator[Change]:
        yield from self._close_open()
        self.all.append(block)
        self._open = block
        yield Opened(block)

    def _grow(self, block: Block, text: str) -> Grew:
        block.texts.append(text)
        return Grew(block, text)

    def _close_open(self) -> Iterator[Change]:
        if self._open is not None:
            closed, self._open = self._open, None
            yield Closed(closed)
