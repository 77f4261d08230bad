"""What tokens are called in answers, and where they stand in a text.

The texts of an answer's tokens, joined, are its text. A token that is only a part of a character
has no text: it is written as OpenAI does, `bytes:\\xf0\\x9f`, and its place is that character's.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, Tokenizer
from remix_runtime.engines.text import is_beginning

_CHARACTER = 4
"""The most tokens of a character that is spelled in bytes."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A token's log-probabilities, and the character of the text that the token begins at."""

    position: PositionLogprobs
    offset: int
    said: bytes | None = None
    """What the token says where that differs from elsewhere: at the beginning of a text some
    tokenizers drop its space, or keep a mark that is otherwise none of the text."""


class TokenTexts:
    """How one request's tokens are written. `as_ids`: as vLLM's `token_id:5`."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids
        self._special = frozenset(tokenizer.special_tokens.values())
        self._written: dict[int, tuple[str, str]] = {}

    def of(self, token_id: int) -> str:
        spelled = self.spelled(token_id)
        return _by_id(token_id) if self._as_ids or not spelled else _readable(spelled)

    def of_placed(self, placed: Placed) -> str:
        """As it stands in its text."""
        if placed.said is None or self._as_ids:
            return self.of(placed.position.chosen.token_id)
        return _readable(placed.said)

    def written(self, token_id: int) -> tuple[str, str]:
        """Its text and its bytes, as JSON."""
        found = self._written.get(token_id)
        if found is None:
            found = as_json(self.of(token_id)), as_json(list(self.spelled(token_id)))
            self._written[token_id] = found
        return found

    def distinct(self, token_ids: Iterable[int]) -> dict[int, str]:
        """A different text for each token, as JSON: of two that look alike the later one is called
        by its id."""
        texts: dict[int, str] = {}
        seen: set[str] = set()
        for token_id in token_ids:
            if token_id not in texts:
                text, _ = self.written(token_id)
                texts[token_id] = as_json(_by_id(token_id)) if text in seen else text
                seen.add(texts[token_id])
        return texts

    def spelled(self, token_id: int) -> bytes:
        """What the token adds to the UTF-8 of a text, special tokens too."""
        return self._tokenizer.token_bytes(token_id)

    def said(self, token_id: int) -> bytes:
        """What the token adds to a text without special tokens."""
        return b"" if token_id in self._special else self.spelled(token_id)

    def is_beginning(self, prompt_token_ids: Sequence[int]) -> bool:
        """Whether a text begins behind the prompt."""
        return is_beginning(self._tokenizer, prompt_token_ids)

    def said_at_beginning(self, token_id: int) -> bytes | None:
        """What a token says at the beginning of a text, where that is something else."""
        alone = self._tokenizer.decode([token_id], skip_special_tokens=False)
        # A part of a character says the same anywhere.
        said = self.spelled(token_id) if "\ufffd" in alone else alone.encode()
        return None if said == self.spelled(token_id) else said


def _readable(spelled: bytes) -> str:
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


def as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _by_id(token_id: int) -> str:
    return f"token_id:{token_id}"


class _Cursor:
    """Walks through a text in the bytes of its tokens."""

    def __init__(self, at: int) -> None:
        self.at = at
        """Whole characters so far."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def pass_over(self, spelled: bytes) -> int:
        """Returns the character that the bytes begin in."""
        if not spelled:
            return self.at
        # A first byte that does not go on with a character ends it, as U+FFFD.
        self.at += len(self._decoder.decode(spelled[:1]))
        unfinished, _ = self._decoder.getstate()
        begin = self.at if unfinished else self.at - 1
        self.at += len(self._decoder.decode(spelled[1:]))
        return begin


class Placement:
    """Gives the generated tokens of a choice their places, as its text comes.

    Text that is held back holds its tokens back, too, so a place is never beyond the text that the
    client has in the end: what a stop string cut off stands at the end of the text.
    """

    def __init__(self, texts: TokenTexts, request: GenerationRequest, *, start: int = 0) -> None:
        """`start`: characters before the generated text."""
        self.length = start
        """Characters of the text that is out."""
        self._texts = texts
        skips = request.params.skip_special_tokens
        self._bytes_of = texts.said if skips else texts.spelled
        self._held: list[Placed] = []
        # A character that the prompt began ends in the text.
        before = request.prompt_token_ids[-_CHARACTER:]
        self._cursor = _Cursor(start)
        for token_id in before:
            self._cursor.pass_over(self._bytes_of(token_id))
        self._cursor.at = start
        self._is_beginning = texts.is_beginning(request.prompt_token_ids)

    def push(
        self, text: str, positions: Sequence[PositionLogprobs] | None, *, ended: bool
    ) -> list[Placed]:
        """Takes more text, and tokens whose text may come later. Returns the tokens whose text is
        out, at the end all."""
        self.length += len(text)
        self._held += map(self._place, positions or ())
        if ended:
            out, self._held = self._held, []
            return [replace(placed, offset=min(placed.offset, self.length)) for placed in out]
        out = [placed for placed in self._held if placed.offset < self.length]
        self._held = self._held[len(out) :]
        return out

    def is_said(self, placed: Placed) -> bool:
        """Whether the token adds to the text: what ended the answer does not."""
        return placed.offset < self.length and bool(self._bytes_of(placed.position.chosen.token_id))

    def _place(self, position: PositionLogprobs) -> Placed:
        token_id = position.chosen.token_id
        spelled, said = self._bytes_of(token_id), None
        if spelled and self._is_beginning:
            self._is_beginning = False
            said = self._texts.said_at_beginning(token_id)
        return Placed(position, self._cursor.pass_over(spelled if said is None else said), said)


def place_prompt(texts: TokenTexts, token_ids: Sequence[int], text: str) -> list[tuple[str, int]]:
    """The text and the place of each token of a prompt.

    Tokens may say more than the text: a tokenizer adds its own token, or a space, at its beginning.
    """
    cursor = _Cursor(0)
    starts = [cursor.pass_over(texts.spelled(token_id)) for token_id in token_ids]
    joined = b"".join(map(texts.spelled, token_ids)).decode(errors="replace")
    fits = joined.endswith(text)
    more = len(joined) - len(text) if fits else max(0, joined.find(text))
    placed = []
    for token_id, start in zip(token_ids, starts, strict=True):
        name, extra = texts.of(token_id), more - start
        if extra > 0 and name[:extra].isspace():
            name = name[extra:]
        placed.append((name, min(max(0, start - more), len(text))))
    return placed
