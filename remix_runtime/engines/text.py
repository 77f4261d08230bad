"""Turns generated token ids into text that can be shown, and holds back what may be a stop string.

A token may end inside a character, and a stop string may begin in one token and end in a later one.
So some text is held until the next tokens decide what it is.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from typing import Protocol

_INCOMPLETE = "\ufffd"
_PROMPT_CONTEXT = 4
"""So many prompt tokens are read before the first generated one: the prompt may end inside a
character, which takes at most four tokens."""

_new_decoder = getincrementaldecoder("utf-8")


class Speller(Protocol):
    """What text needs of a tokenizer; see `contracts.Tokenizer`."""

    @property
    def special_tokens(self) -> Mapping[str, int]: ...

    def token_bytes(self, token_id: int) -> bytes: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...


def text_after(speller: Speller, context: Sequence[int], token_ids: Sequence[int]) -> str:
    """The text that `token_ids` write after the tokens `context`, special tokens included."""
    stream = TextStream(speller, context, skip_special_tokens=False)
    return "".join(map(stream.push, token_ids)) + stream.flush()


def is_beginning(speller: Speller, prompt_token_ids: Sequence[int]) -> bool:
    """Whether a text begins behind the prompt, and some decoders drop a space of its first token.

    By the prompt's tokens: its own first space is one of those that are dropped."""
    special = frozenset(speller.special_tokens.values())
    return all(token in special for token in prompt_token_ids)


class _StopString:
    """Looks for one string in a text that comes in pieces, by Knuth, Morris and Pratt: each
    character is looked at twice at most, however long the string and the text are."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        """Length of the longest end of the text so far that begins the string."""
        self._shorter = [0]
        """For each beginning of the string, the next shorter one that it ends with. Made as far as
        it is needed."""

    def find(self, piece: str, *, after: int) -> int | None:
        """Reads a piece. Returns where in it the string ends first, later than `after`."""
        at, matched, text = 0, self.matched, self.text
        while at < len(piece):
            if not matched:
                at = piece.find(text[0], at)
                if at < 0:
                    break
            char = piece[at]
            while matched and text[matched] != char:
                matched = self._shorten(matched)
            matched += text[matched] == char
            at += 1
            if matched == len(text):
                matched = self._shorten(matched)
                if at > after:
                    return at
        self.matched = matched
        return None

    def _shorten(self, matched: int) -> int:
        text, shorter = self.text, self._shorter
        while len(shorter) < matched:
            char, length = text[len(shorter)], shorter[-1]
            while length and text[length] != char:
                length = shorter[length - 1]
            shorter.append(length + (text[length] == char))
        return shorter[matched - 1]


class TextStream:
    """The text of one growing completion.

    `push` takes the next token and returns what can be shown now; once `stopped` is true a stop
    string was met, and nothing after it is ever returned, nor the string itself unless
    `include_stop`. `flush` returns the rest when the completion ends for another reason. A stop
    string does not count before the completion has more than `min_tokens`.
    """

    def __init__(
        self,
        speller: Speller,
        prompt_token_ids: Sequence[int],
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
        skip_special_tokens: bool = True,
    ) -> None:
        self.stopped = False
        self._speller = speller
        self._stops = tuple(map(_StopString, stop))
        self._include_stop = include_stop
        self._tokens_before_stop = min_tokens
        self._skip = frozenset(speller.special_tokens.values()) if skip_special_tokens else ()
        self._held = ""
        self._no_stop_before = 0
        """No stop string may end before this place of `_held`."""
        self._decoder = _new_decoder("replace")
        context = prompt_token_ids[-_PROMPT_CONTEXT:]
        self._decoder.decode(b"".join(map(self._bytes, context)))
        self._is_start = is_beginning(speller, prompt_token_ids)

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._bytes(token_id))
        if token_id not in self._skip and self._is_start:
            self._is_start = False
            alone = self._speller.decode([token_id], skip_special_tokens=False)
            if _INCOMPLETE not in alone:
                text = alone
        if not self._stops:
            return text
        if self._tokens_before_stop > 0:
            self._tokens_before_stop -= 1
            self._no_stop_before = len(self._held) + len(text)
        return self._release(text)

    def flush(self) -> str:
        if self.stopped:
            return ""
        # Text that was waiting for the rest of a character may complete a stop string.
        cut = self._read(self._decoder.decode(b"", final=True))
        self.stopped = cut is not None
        text, self._held = self._held, ""
        return text[:cut]

    def _bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._skip else self._speller.token_bytes(token_id)

    def _release(self, text: str) -> str:
        cut = self._read(text)
        if cut is not None:
            self.stopped = True
        else:
            cut = len(self._held) - max(stop.matched for stop in self._stops)
        shown, self._held = self._held[:cut], self._held[cut:]
        self._no_stop_before = max(0, self._no_stop_before - cut)
        return shown

    def _read(self, text: str) -> int | None:
        """Adds to what is held. Returns where that is cut, for the stop string that is complete
        first."""
        before, found = len(self._held), []
        self._held += text
        for stop in self._stops:
            end = stop.find(text, after=self._no_stop_before - before)
            if end is not None:
                found.append((before + end, before + end - len(stop.text)))
        if not found:
            return None
        end, start = min(found)
        return end if self._include_stop else start
