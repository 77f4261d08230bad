"""Bad words as tokens, once for a request."""

from __future__ import annotations

from functools import lru_cache

from remix_runtime.contracts import ModelInfo, SamplingParams, Tokenizer
from remix_runtime.errors import InvalidRequestError

MAX_SEQUENCES = 128
MAX_TOKENS = 1024
_MAX_CHARS = 16 * MAX_TOKENS

BadWords = tuple[tuple[int, ...], ...]
"""Sequences of tokens whose last one is not drawn after the others."""


def bad_word_ids(params: SamplingParams, tokenizer: Tokenizer, model: ModelInfo) -> BadWords:
    """Each word's spellings. Raises `InvalidRequestError` for words that no token spells, for too
    many of them, and where they and the request's other limits leave no token."""
    chars = sum(map(len, params.bad_words))
    if chars > _MAX_CHARS:
        raise _wrong(f"found {chars} characters, expected at most {_MAX_CHARS}")
    found = _all_spellings(params.bad_words, tokenizer)
    # A tokenizer may know tokens that the model can never draw.
    found = tuple(ids for ids in found if max(ids) < model.vocab_size)
    if len(found) > MAX_SEQUENCES:
        raise _wrong(f"found {len(found)} spellings of words, expected at most {MAX_SEQUENCES}")
    if (tokens := sum(map(len, found))) > MAX_TOKENS:
        raise _wrong(f"found {tokens} tokens, expected at most {MAX_TOKENS}")
    _require_choice(params, found, model)
    return found


# The choices of a request come one by one, all with the same words.
@lru_cache(maxsize=16)
def _all_spellings(words: tuple[str, ...], tokenizer: Tokenizer) -> BadWords:
    return tuple(ids for word in dict.fromkeys(words) for ids in _spellings(word, tokenizer))


def _spellings(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """A word at the start of a text and, where that is as long and begins with another token, after
    a space: vLLM's rule."""
    bare = word.lstrip()
    first = tuple(tokenizer.encode(bare, add_special_tokens=False))
    if not first:
        raise _wrong(f"found {word!r}, expected words of a token or more")
    spaced = tuple(tokenizer.encode(f" {bare}", add_special_tokens=False))
    differs = len(spaced) == len(first) and spaced[0] != first[0]
    return [first, spaced] if differs else [first]


def _require_choice(params: SamplingParams, words: BadWords, model: ModelInfo) -> None:
    """Refuses limits under which the first token could not be drawn."""
    never = {word[0] for word in words if len(word) == 1}
    if params.min_tokens:
        never.update(params.stop_token_ids, model.eos_token_ids)
    if not never:
        return
    # Without a list of its own a request has the vocabulary: too long to go through for each one.
    allowed = params.allowed_token_ids
    if never.issuperset(allowed) if allowed else len(never) >= model.vocab_size:
        param = "allowed_token_ids" if params.allowed_token_ids else "stop_token_ids"
        raise InvalidRequestError(
            f"{param}: no token is left that may be drawn, without bad_words, and without the end "
            "of the text and stop tokens before min_tokens",
            param=param,
        )


def _wrong(text: str) -> InvalidRequestError:
    return InvalidRequestError(f"bad_words: {text}", param="bad_words")
