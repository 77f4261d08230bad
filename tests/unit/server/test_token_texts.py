"""Tokens of a tokenizer that writes words with a space before them, as SentencePiece does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from remix_runtime.engines.fake_model import ByteTokenizer
from server.api.logprobs import chat_logprobs, completion_logprobs
from server.api.token_texts import Placement, TokenTexts, place_prompt

PIECES = [
    b"<s>",
    b"</s>",
    b" Hello",
    b" world",
    b" ",
    b" ",
    b"\xf0\x9f",
    b"\x8c\x8d",
    b"!",
    b"",
    b"\n",
]
BOS, EOS, HELLO, WORLD, SPACE, SPACE_BYTE, GLOBE_1, GLOBE_2, MARK, PADDING, LINE = range(11)


class Spaced(ByteTokenizer):
    special_tokens: Mapping[str, int] = {"<s>": BOS, "</s>": EOS}

    def token_bytes(self, token_id: int) -> bytes:
        return PIECES[token_id]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        hidden = (BOS, EOS) if skip_special_tokens else ()
        joined = b"".join(PIECES[i] for i in token_ids if i not in hidden)
        return joined.decode(errors="replace").removeprefix(" ")


TEXTS = TokenTexts(Spaced())


def position(chosen: int, *top: int) -> PositionLogprobs:
    made = [TokenLogprob(token_id=i, logprob=-0.5 - i) for i in (chosen, *top)]
    return PositionLogprobs(chosen=made[0], top=tuple(made[1:]))


def request(prompt: Sequence[int] = (HELLO,), *, skip: bool = True) -> GenerationRequest:
    params = SamplingParams(max_tokens=9, skip_special_tokens=skip, logprobs=0)
    return GenerationRequest(request_id="a", prompt_token_ids=tuple(prompt), params=params)


def test_spaces_are_part_of_the_tokens() -> None:
    positions = [position(WORLD), position(SPACE), position(HELLO), position(MARK)]
    placed = Placement(TEXTS, request()).push(" world  Hello!", positions, ended=True)
    logprobs = completion_logprobs(TEXTS, placed)
    assert "".join(map(json.loads, logprobs.tokens)) == " world  Hello!"
    assert list(map(int, logprobs.text_offset)) == [0, 6, 7, 13]


def test_tokens_that_look_alike_stay_apart() -> None:
    top = (SPACE_BYTE, SPACE, PADDING, GLOBE_1, GLOBE_2)
    placed = Placement(TEXTS, request()).push(" ", [position(SPACE, *top)], ended=True)
    logprobs = completion_logprobs(TEXTS, placed)
    assert list(map(json.loads, logprobs.tokens)) == [" "]
    assert json.loads(logprobs.top_logprobs[0]) == {
        f"token_id:{SPACE_BYTE}": -0.5 - SPACE_BYTE,
        " ": -0.5 - SPACE,
        f"token_id:{PADDING}": -0.5 - PADDING,
        "bytes:\\xf0\\x9f": -0.5 - GLOBE_1,
        "bytes:\\x8c\\x8d": -0.5 - GLOBE_2,
    }


def test_a_prompt_has_what_its_tokenizer_adds_before_its_text() -> None:
    ids = [BOS, HELLO, WORLD, GLOBE_1, GLOBE_2, MARK]
    placed = place_prompt(TEXTS, ids, "Hello world🌍!")
    names = ["<s>", "Hello", " world", "bytes:\\xf0\\x9f", "bytes:\\x8c\\x8d", "!"]
    assert placed == list(zip(names, [0, 0, 5, 11, 11, 12], strict=True))
    # Ids are written with their special tokens.
    text = Spaced().decode([*ids, EOS], skip_special_tokens=False)
    placed = place_prompt(TEXTS, [*ids, EOS], text)
    assert [offset for _, offset in placed] == [0, 3, 9, 15, 15, 16, 17]
    # What a normalizer changed has places inside the text at least.
    placed = place_prompt(TEXTS, [HELLO, WORLD, MARK], "hello")
    assert [offset for _, offset in placed] == [0, 5, 5]


def test_a_character_that_the_prompt_begins_ends_in_the_text() -> None:
    placement = Placement(TEXTS, request([HELLO, GLOBE_1]))
    placed = placement.push("🌍!", [position(GLOBE_2), position(MARK)], ended=True)
    assert [token.offset for token in placed] == [0, 1]


def test_special_tokens_take_room_where_they_are_shown() -> None:
    positions = [position(BOS), position(MARK)]
    shown = Placement(TEXTS, request(skip=False)).push("<s>!", positions, ended=True)
    assert [token.offset for token in shown] == [0, 3]
    hidden = Placement(TEXTS, request()).push("!", positions, ended=True)
    assert [token.offset for token in hidden] == [0, 0]


@given(ids=st.lists(st.sampled_from(range(2, 11)), max_size=12), data=st.data())
def test_places_however_the_text_comes(ids: list[int], data: st.DataObject) -> None:
    """Tokens come before their text or with it, in parts; text may be cut off in the end."""
    text = b"".join(PIECES[i] for i in ids).decode(errors="replace")
    text = text[: data.draw(st.integers(0, len(text)))]
    placement = Placement(TEXTS, request())
    placed, shown, taken = [], 0, 0
    while taken < len(ids):
        tokens = data.draw(st.integers(1, len(ids) - taken))
        chars = data.draw(st.integers(0, len(text) - shown))
        new = [position(i) for i in ids[taken : taken + tokens]]
        out = placement.push(text[shown : shown + chars], new, ended=False)
        shown, taken = shown + chars, taken + tokens
        assert all(token.offset < shown for token in out)
        placed += out
    placed += placement.push(text[shown:], None, ended=True)
    assert [token.position.chosen.token_id for token in placed] == ids
    offsets = [token.offset for token in placed]
    assert all(a <= b for a, b in pairwise([0, *offsets, len(text)]))
    whole = Placement(TEXTS, request()).push(text, [position(i) for i in ids], ended=True)
    assert [token.offset for token in whole] == offsets


def test_a_byte_that_ends_no_character_stands_before_the_next() -> None:
    positions = [position(GLOBE_1), position(MARK), position(GLOBE_2), position(MARK)]
    placed = Placement(TEXTS, request()).push("\ufffd!\ufffd\ufffd!", positions, ended=True)
    assert [token.offset for token in placed] == [0, 1, 2, 4]


def test_a_space_that_the_text_does_not_have() -> None:
    """Nothing stands before the answer, and its tokenizer begins no text with a space."""
    positions = [position(WORLD, WORLD, MARK), position(HELLO)]
    placement = Placement(TEXTS, request([BOS]))
    placed = placement.push("world Hello", positions, ended=True)
    logprobs = completion_logprobs(TEXTS, placed)
    assert list(map(json.loads, logprobs.tokens)) == ["world", " Hello"]
    assert list(map(int, logprobs.text_offset)) == [0, 5]
    assert json.loads(logprobs.top_logprobs[0]) == {"world": -0.5 - WORLD, "!": -0.5 - MARK}
    content = [json.loads(entry) for entry in chat_logprobs(TEXTS, placement, placed)]
    assert b"".join(bytes(entry["bytes"]) for entry in content) == b"world Hello"
    assert [entry["token"] for entry in content] == ["world", " Hello"]
