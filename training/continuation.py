"""The tokens that a model is to write after the tokens of a prompt, so that a text comes out.

A text is not tokenised piece by piece: SentencePiece puts a space before whatever stands alone, and
a merge may cross the border between prompt and completion. So the whole is encoded, and split where
the prompt's own tokens end. If they do not end there, the text is encoded behind other characters.
What counts is what the server would say: tokens whose text after the context is the wanted one.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from remix_runtime.engines.spelling import spelling_of
from remix_runtime.engines.text import text_after
from remix_runtime.errors import DataError

_ANCHORS = ("\n", "(", ".", "a", "0", "é")
"""Texts that the first token of a completion may stand behind without a space or a merge."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as a server sees it."""

    text: str
    context: list[int]
    """The tokens that the model gets."""
    bare: list[int]
    """The same without the special tokens that the tokenizer adds."""

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool
    ) -> Prompt:
        bare = _encode(tokenizer, text)
        if not add_special_tokens:  # a chat template writes them itself
            return cls(text, bare, bare)
        return cls(text, list(tokenizer.encode(text)), bare)


def continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str, end_ids: frozenset[int]
) -> list[int]:
    """Tokens that write `text` after `prompt`, up to the first of `end_ids` and with it.

    A tokenizer that normalises cannot write every text: then they are the tokens of the whole, and
    write what it makes of the text. Raises `DataError` where the text would be lost: the tokenizer
    has no token for a part of it, or only tokens that write another text after this prompt.
    """
    drafts = []
    for whole, ids in _drafts(tokenizer, prompt, text):
        size = next((at for at, token in enumerate(ids) if token in end_ids), len(ids))
        end = "" if size == len(ids) else token_text(tokenizer, ids[size])
        wanted = text.partition(end)[0] if end else text
        written = _written(tokenizer, prompt.context, ids[:size])
        if written == wanted:
            return ids[: size + 1]
        # How the tokenizer spells the text by itself, which may be in another normal form.
        spelled = _written(tokenizer, [], _encode(tokenizer, wanted))
        distance = 0 if whole or written == spelled else 1
        distance += written.split() != spelled.split()
        drafts.append((distance, ids[: size + 1], wanted, written))
    distance, ids, wanted, written = min(drafts, key=lambda draft: draft[0])
    unknown = tokenizer.unk_token_id
    if _loses(wanted, written) or (unknown not in end_ids and unknown in ids):
        raise DataError(
            f"found {_shown(text)}, expected text that the base's tokenizer has tokens for"
        )
    if distance > 1:
        raise DataError(
            f"found {_shown(text)}, which the base's tokenizer cannot write after "
            f"{_shown(prompt.text, end=True)}; expected a completion that begins elsewhere"
        )
    return ids


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    return spelling_of(tokenizer).decode([token_id], skip_special_tokens=False)


def _drafts(
    tokenizer: PreTrainedTokenizerBase, prompt: Prompt, text: str
) -> Iterator[tuple[bool, list[int]]]:
    """Possible tokens, the best first; true for those that are split from the whole."""
    ids = _encode(tokenizer, prompt.text + text)
    if ids[: len(prompt.bare)] == prompt.bare:
        yield True, ids[len(prompt.bare) :]
    yield False, _encode(tokenizer, text)
    yield False, _encode(tokenizer, " " + text)  # the first space of a text may be dropped
    for anchor in _ANCHORS:
        before, ids = _encode(tokenizer, anchor), _encode(tokenizer, anchor + text)
        if ids[: len(before)] == before:
            yield False, ids[len(before) :]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _written(tokenizer: PreTrainedTokenizerBase, context: Sequence[int], ids: Sequence[int]) -> str:
    return text_after(spelling_of(tokenizer), context, ids)


def _loses(wanted: str, written: str) -> bool:
    """Whether visible characters are gone, and not only spelled in another way."""

    def visible(text: str) -> int:
        letters = unicodedata.normalize("NFKD", text.replace("▁", " "))  # SentencePiece's space
        return sum(unicodedata.category(letter)[0] not in "CMZ" for letter in letters)

    return visible(written) < visible(wanted)


def _shown(text: str, *, end: bool = False) -> str:
    return repr(text[-30:] if end else text[:30])
