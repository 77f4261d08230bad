"""Separates what a model thinks, between `<think>` and `</think>`, from what it answers."""

from __future__ import annotations

from collections.abc import Iterable

from remix_runtime.chats.reads import END_OF_THOUGHT, THINK
from server.api.parts import AnswerParser, Delta, ReasoningDelta


class ThoughtParser(AnswerParser):
    """Gives what follows the thoughts to `answer`. White space around thoughts goes with them."""

    def __init__(self, answer: AnswerParser, *, begun: bool) -> None:
        """`begun`: the prompt ends in an open thought, so the text begins inside of it."""
        self._answer = answer
        self._state = self._thinking if begun else self._before
        self._held = ""
        self._said = False
        """Whether anything was thought yet."""

    def push(self, text: str) -> Iterable[Delta]:
        return self._state(text)

    def close(self) -> Iterable[Delta]:
        held, self._held = self._held, ""
        if self._state == self._thinking:
            thought = held.strip() if not self._said else held.rstrip()
            return [ReasoningDelta(thought)] if thought else []
        if self._state == self._before:
            return [*self._answer.push(held), *self._answer.close()]
        return self._answer.close()

    def _before(self, text: str) -> Iterable[Delta]:
        self._held += text
        begun = self._held.lstrip()
        if begun.startswith(THINK):
            self._held, self._state = "", self._thinking
            return self._thinking(begun.removeprefix(THINK))
        if THINK.startswith(begun):
            return []
        self._state, held, self._held = self._answering, self._held, ""
        return self._answering(held)

    def _thinking(self, text: str) -> Iterable[Delta]:
        self._held += text
        thought, end, rest = self._held.partition(END_OF_THOUGHT)
        if end:
            self._held = ""
            self._state = self._after
            return [*self._think(thought.rstrip()), *self._after(rest)]
        held = len(thought) - len(_may_go_on(thought.rstrip()).rstrip())
        self._held = thought[len(thought) - held :]
        return self._think(thought[: len(thought) - held])

    def _think(self, text: str) -> Iterable[Delta]:
        thought = text if self._said else text.lstrip()
        self._said |= bool(thought)
        return [ReasoningDelta(thought)] if thought else []

    def _after(self, text: str) -> Iterable[Delta]:
        words = text.lstrip()
        if not words:
            return []
        self._state = self._answering
        return self._answering(words)

    def _answering(self, text: str) -> Iterable[Delta]:
        return self._answer.push(text)


def _may_go_on(text: str) -> str:
    """The text without what may be the beginning of the end of a thought."""
    sizes = range(min(len(text), len(END_OF_THOUGHT)), 0, -1)
    size = next((n for n in sizes if END_OF_THOUGHT.startswith(text[-n:])), 0)
    return text[: len(text) - size]
