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
"""So many prompt tokens are read before the first generated one: some tokenizers drop a space at
the start of a text, and the prompt may end inside a character, which takes at most four tokens."""

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
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._tokens_before_stop = min_tokens
        self._skip = frozenset(speller.special_tokens.values()) if skip_special_tokens else ()
        self._held = ""
        self._no_stop_before = 0
        """No stop string may end before this place of `_held`."""
        self._decoder = _new_decoder("replace")
        context = prompt_token_ids[-_PROMPT_CONTEXT:]
        self._decoder.decode(b"".join(map(self._bytes, context)))
        self._is_start = not speller.decode(context, skip_special_tokens=skip_special_tokens)
        """Nothing stands before the next token."""

    def push(self, token_id: int) -> str:
        text = self._decoder.decode(self._bytes(token_id))
        if token_id not in self._skip and self._is_start:
            self._is_start = False
            # Some decoders drop a space of the first token.
            alone = self._speller.decode([token_id], skip_special_tokens=False)
            if _INCOMPLETE not in alone:
                text = alone
        if not self._stop:
            return text
        if self._tokens_before_stop > 0:
            self._tokens_before_stop -= 1
            self._no_stop_before = len(self._held) + len(text)
        return self._release(text)

    def flush(self) -> str:
        if self.stopped:
            return ""
        text = self._held + self._decoder.decode(b"", final=True)
        self._held = ""
        # Text that was waiting for the rest of a character may complete a stop string.
        cut = self._first_stop(text)
        self.stopped = cut is not None
        return text[:cut]

    def _bytes(self, token_id: int) -> bytes:
        return b"" if token_id in self._skip else self._speller.token_bytes(token_id)

    def _release(self, text: str) -> str:
        self._held += text
        cut = self._first_stop(self._held)
        if cut is not None:
            self.stopped = True
        else:
            cut = len(self._held) - self._possible_stop_start(self._held)
        shown, self._held = self._held[:cut], self._held[cut:]
        self._no_stop_before = max(0, self._no_stop_before - cut)
        return shown

    def _first_stop(self, text: str) -> int | None:
        """Where the text is cut for the stop string that is complete first."""
        found = []
        for stop in self._stop:
            at = text.find(stop, max(0, self._no_stop_before - len(stop) + 1))
            if at >= 0:
                found.append((at + len(stop), at))
        if not found:
            return None
        end, start = min(found)
        return end if self._include_stop else start

    def _possible_stop_start(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        return max(
            (
                size
                for stop in self._stop
                for size in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
