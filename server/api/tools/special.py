"""Keeps special tokens out of an answer whose text has them, since calls are marked by some."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from server.api.parts import AnswerParser, Delta, TextDelta


class TextWithout:
    """A text that grows, without certain words."""

    def __init__(self, words: Collection[str]) -> None:
        longest_first = sorted(words, key=len, reverse=True)
        self._words = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._beginnings = {word[:size] for word in words for size in range(1, len(word))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    def push(self, text: str) -> str:
        text = self._words.sub("", self._held + text)
        sizes = range(min(self._longest, len(text)), 0, -1)
        held = next((size for size in sizes if text[-size:] in self._beginnings), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def close(self) -> str:
        held, self._held = self._held, ""
        return held


class HidingParser(AnswerParser):
    """Hides `special` tokens; `marks` among them only from what `inner`, which needs them, gives as
    text."""

    def __init__(
        self, inner: AnswerParser, *, special: Collection[str], marks: Collection[str]
    ) -> None:
        self._inner = inner
        self._text = TextWithout({*special} - {*marks})
        self._words = TextWithout({*special} & {*marks})

    def push(self, text: str) -> Iterable[Delta]:
        return self._hide(self._inner.push(self._text.push(text)))

    def close(self) -> Iterable[Delta]:
        yield from self._hide(self._inner.push(self._text.close()))
        yield from self._hide(self._inner.close())
        if words := self._words.close():
            yield TextDelta(words)

    def _hide(self, deltas: Iterable[Delta]) -> Iterable[Delta]:
        for delta in deltas:
            if not isinstance(delta, TextDelta):
                yield delta
            elif words := self._words.push(delta.text):
                yield TextDelta(words)
