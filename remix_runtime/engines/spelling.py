"""What each token of a tokenizer adds to the UTF-8 of a text.

A token may end inside a character, so its text alone says too little. How a token is spelled is
asked of the tokenizer's own decoder; only bytes have spellings of their own, of which there are
two: GPT-2's letters for bytes, and names like `<0x0A>`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

_BYTE_NAME = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BEFORE, _AFTER = "a", "b"
"""Decoders treat the first and the last token of a text differently: a token is read in between."""


class Spelling:
    """The way from tokens to text of a tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        """What tokens add, of those that were asked for: it is asked again and again."""

    @property
    def own(self) -> PreTrainedTokenizerBase:
        """The tokenizer as transformers has it."""
        return self._tokenizer

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(
            list(token_ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
        return text

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The tokens that `decode` leaves out, by their text."""
        added = self._tokenizer.added_tokens_decoder
        return {token.content: token_id for token_id, token in added.items() if token.special}

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the UTF-8 of a text. The bytes of tokens, joined, are their text
        with special tokens, apart from a space that some decoders drop at its start."""
        known = self._known.get(token_id)
        if known is None:
            known = self._known[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # a row of the embedding without a token
            return b""
        if self._byte_letters:
            letters = [_BYTE_OF_LETTER.get(letter) for letter in token]
            known = [letter for letter in letters if letter is not None]
            # A special token's name may have other letters.
            return bytes(known) if len(known) == len(letters) else token.encode()
        if self._byte_names and (name := _BYTE_NAME.fullmatch(token)):
            return bytes([int(name[1], 16)])
        return self._between(token).encode(errors="replace")

    def _between(self, token: str) -> str:
        text = self._spelled([_BEFORE, token, _AFTER])
        return text[len(_BEFORE) : len(text) - self._num_around + len(_BEFORE)]

    @cached_property
    def _num_around(self) -> int:
        """Characters of the two tokens alone that a token is read between."""
        return len(self._spelled([_BEFORE, _AFTER]))

    def _spelled(self, tokens: list[str]) -> str:
        text: str = self._tokenizer.convert_tokens_to_string(tokens)
        return text

    @cached_property
    def _decoders(self) -> frozenset[str]:
        """The kinds of decoder that the tokenizer is made of."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        return frozenset() if decoder is None else frozenset(_kinds(json.loads(_state(decoder))))

    @cached_property
    def _byte_letters(self) -> bool:
        # Tokenizers in Python have the table themselves.
        return "ByteLevel" in self._decoders or hasattr(self._tokenizer, "byte_decoder")

    @cached_property
    def _byte_names(self) -> bool:
        return "ByteFallback" in self._decoders or not self._tokenizer.is_fast


def _state(decoder: Any) -> bytes:
    state: bytes = decoder.__getstate__()
    return state


def _kinds(decoder: Mapping[str, Any]) -> list[str]:
    parts = decoder.get("decoders", ())
    return [decoder["type"], *(kind for part in parts for kind in _kinds(part))]


def _letters_of_bytes() -> dict[str, int]:
    """GPT-2's: printable characters of Latin-1 stand for themselves, the other bytes for the
    characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF_LETTER = _letters_of_bytes()


@lru_cache(maxsize=8)
def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling:
    """The one spelling of a tokenizer, which keeps what it has found out."""
    return Spelling(tokenizer)
