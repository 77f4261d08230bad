"""A long text is tokenized as far as it matters, and what is kept are the whole text's tokens."""

from __future__ import annotations

import random

import pytest

from remix_runtime.engines.within import encode_within
from tests.tokenizers import FAMILIES, tokenizer_of

AT_MOST = 500


class Counting:
    """A token for every third character, by what stands there; counts what it is given."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, text: str) -> list[int]:
        self.characters += len(text)
        return list(map(ord, text[::3]))


def long_text(words: int) -> str:
    draw = random.Random(7)
    return " ".join(draw.choice(["the", "cat", "sat", "on\n", "1984", "ß"]) for _ in range(words))


@pytest.mark.parametrize("keep_end", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_that_are_kept_are_those_of_the_whole_text(family: str, keep_end: bool) -> None:
    tokenizer = tokenizer_of(family)
    text = long_text(9000)
    whole = tokenizer.encode(text)
    found = encode_within(tokenizer.encode, text, AT_MOST, keep_end=keep_end)
    assert AT_MOST < len(found) < len(whole)
    kept = slice(-AT_MOST, None) if keep_end else slice(AT_MOST)
    assert found[kept] == whole[kept]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_fits_has_all_its_tokens(family: str) -> None:
    tokenizer = tokenizer_of(family)
    text = long_text(9000)
    whole = tokenizer.encode(text)
    for at_most in (None, len(whole)):
        assert encode_within(tokenizer.encode, text, at_most) == whole


def test_the_work_is_bounded_by_what_may_be_kept() -> None:
    """And by the text, where its tokens are few."""
    for length in (10**5, 10**6):
        encode = Counting()
        encode_within(encode, "x" * length, AT_MOST)
        assert encode.characters <= 20 * AT_MOST
    encode = Counting()
    assert len(encode_within(encode, "x" * 30_000, 10_000)) == 10_000
    assert encode.characters <= 2 * 30_000
