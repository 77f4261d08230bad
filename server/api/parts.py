"""What the text of an answer consists of: thoughts, words and calls of tools."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the words for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins; calls are numbered from 0."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallDelta:
    """More of the arguments, JSON, of call number `index`."""

    index: int
    arguments: str


Delta = TextDelta | ReasoningDelta | CallStart | CallDelta


class AnswerParser(ABC):
    """Splits the text of one choice into its parts, as it comes. What the deltas say together does
    not depend on how the text was cut."""

    @abstractmethod
    def push(self, text: str) -> Iterable[Delta]:
        """Takes more text; some of it may be held back until what follows tells what it is."""

    @abstractmethod
    def close(self) -> Iterable[Delta]:
        """What was held back, at the end of the answer."""


class PlainParser(AnswerParser):
    """An answer that is nothing but words."""

    def push(self, text: str) -> Iterable[Delta]:
        return [TextDelta(text)] if text else []

    def close(self) -> Iterable[Delta]:
        return []


@dataclass(slots=True)
class ToolCall:
    """A whole call."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class Answer:
    """All parts of one choice, put together again."""

    text: str
    reasoning: str
    calls: list[ToolCall]


def parse_whole(parser: AnswerParser, text: str) -> Answer:
    """Parses a whole answer with a fresh parser."""
    answer = Answer("", "", [])
    for delta in (*parser.push(text), *parser.close()):
        match delta:
            case TextDelta():
                answer.text += delta.text
            case ReasoningDelta():
                answer.reasoning += delta.text
            case CallStart():
                answer.calls.append(ToolCall(delta.id, delta.name, ""))
            case CallDelta():
                answer.calls[delta.index].arguments += delta.arguments
    return answer
