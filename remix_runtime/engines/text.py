"""Turns generated token ids into text that can be shown, and holds back what may be a stop string.

A byte-level token may end inside a character, and a stop string may begin in one token and end in a
later one. So some text is held until the next tokens decide what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

_INCOMPLETE = "\ufffd"
_MAX_PENDING_TOKENS = 8
"""A character takes at most so many byte tokens: a longer run of U+FFFD is the model's own text."""
_PROMPT_CONTEXT = 4
"""So many prompt tokens are decoded with the first generated ones, since some tokenizers drop a
space at the start of a text."""
_MAX_CHARACTER = 4
"""The most tokens of a character that is spelled in bytes."""


def text_after(
    decode: Callable[[Sequence[int]], str], context: Sequence[int], token_ids: Sequence[int]
) -> str:
    """The text that `token_ids` write after the tokens `context`, all of them at once."""
    known = _end_of(decode, context)
    return _appended(decode, [*known, *token_ids], len(known))


def _end_of(decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> list[int]:
    """The last tokens of a prompt, from the beginning of a character if there is one: some
    tokenizers cannot read any byte of a run whose first one is missing."""
    sizes = range(_PROMPT_CONTEXT, _PROMPT_CONTEXT + _MAX_CHARACTER)
    ends = (list(prompt[-size:]) for size in sizes)
    whole = (end for end in ends if not decode(end).startswith(_INCOMPLETE))
    return next(whole, list(prompt[-_PROMPT_CONTEXT:]))


def _appended(decode: Callable[[Sequence[int]], str], ids: Sequence[int], known: int) -> str:
    """What the tokens after the first `known` ones add to their text."""
    before, text = decode(ids[:known]), decode(ids)
    # A character that the known tokens began stands there as U+FFFD and is whole now.
    pairs = zip(before, text, strict=False)
    differ = (at for at, (old, new) in enumerate(pairs) if old != new)
    return text[next(differ, min(len(before), len(text))) :]


class TextStream:
    """The text of one growing completion.

    `push` takes the next token and returns what can be shown now; once `stopped` is true a stop
    string was met and neither it nor anything after it is ever returned. `flush` returns the
    rest when the completion ends for another reason.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        prompt_token_ids: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self.stopped = False
        self._decode = decode
        self._stop = tuple(stop)
        self._held = ""
        # Text of ids[: _shown] is out; decoding starts at `_context` to get the joints right.
        self._ids = _end_of(decode, prompt_token_ids)
        self._context = 0
        self._shown = len(self._ids)

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._new_text()
        pending = len(self._ids) - self._shown
        if text.endswith(_INCOMPLETE) and pending < _MAX_PENDING_TOKENS:
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return self._release(text)

    def flush(self) -> str:
        if self.stopped:
            return ""
        text = self._held + self._new_text()
        self._held, self._shown = "", len(self._ids)
        # Text that was waiting for the rest of a character may complete a stop string.
        cut = self._first_stop(text)
        self.stopped = cut is not None
        return text[:cut]

    def _new_text(self) -> str:
        return _appended(self._decode, self._ids[self._context :], self._shown - self._context)

    def _release(self, text: str) -> str:
        self._held += text
        cut = self._first_stop(self._held)
        if cut is not None:
            self.stopped = True
        else:
            cut = len(self._held) - self._possible_stop_start(self._held)
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def _first_stop(self, text: str) -> int | None:
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        return min(found, default=None)

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
