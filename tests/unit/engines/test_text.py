"""Streamed text equals the whole text, whatever the token boundaries."""

from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.engines.spelling import Spelling
from remix_runtime.engines.text import TextStream, text_after
from tests.tokenizers import EXACT, FAMILIES, tokenizer_of


class Bytes:
    """A token for each byte."""

    special_tokens: Mapping[str, int] = {}

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


class Runs(Bytes):
    """As a SentencePiece tokenizer reads bytes: a run that is not UTF-8 has no letter."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        try:
            return bytes(token_ids).decode()
        except UnicodeDecodeError:
            return "\ufffd" * len(token_ids)


class Stripping(Bytes):
    """Drops a space at the start of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return super().decode(token_ids).removeprefix(" ")


def stream(text: str, stop: Sequence[str] = (), prompt: bytes = b"") -> tuple[list[str], bool]:
    out = TextStream(Bytes(), list(prompt), stop)
    pieces = []
    for token in text.encode():
        pieces.append(out.push(token))
        if out.stopped:
            return pieces, True
    return [*pieces, out.flush()], out.stopped


@given(st.text(st.characters(exclude_characters="\ufffd", exclude_categories=["Cs"])))
def test_pieces_join_to_the_whole_text(text: str) -> None:
    pieces, stopped = stream(text, prompt=b"abc")
    assert "".join(pieces) == text
    assert not stopped


@given(st.text("a€🙂é", min_size=1, max_size=6), st.text("a€🙂é", max_size=6))
def test_a_prompt_whose_last_tokens_begin_inside_a_character(prompt: str, text: str) -> None:
    out = TextStream(Runs(), list(prompt.encode()))
    assert "".join(map(out.push, text.encode())) + out.flush() == text
    assert text_after(Runs(), list(prompt.encode()), list(text.encode())) == text


@given(st.text("ab€", max_size=20), st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    pieces, stopped = stream(text, stops)
    # The first stop string that is complete ends the text, so cut at the earliest end.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    if not ends:
        assert ("".join(pieces), stopped) == (text, False)
    else:
        first_end = min(end for end, _ in ends)
        assert stopped
        assert "".join(pieces) == text[: min(start for end, start in ends if end == first_end)]


class Looked(str):
    """A stop string that tells how many of its characters were looked at."""

    __slots__ = ()
    characters = 0

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        found = super().__getitem__(key)
        Looked.characters += len(found)
        return found

    def __hash__(self) -> int:
        return super().__hash__()


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("a" * 999 + "b", "a"),  # the longest beginning of it is there all the time
        ("ab" * 499 + "c", "ab"),
        ("a" * 20 + "b" + "a" * 20 + "c", "a" * 20 + "b"),
        ("x" * 1000, "a"),
    ],
)
def test_a_token_costs_the_same_however_long_stop_strings_and_text_are(
    stop: str, text: str
) -> None:
    out = TextStream(Bytes(), [1], [Looked(stop + str(i)) for i in range(16)])
    Looked.characters = 0
    tokens = (text.encode() * 6000)[:6000]
    for token in tokens:
        out.push(token)
        assert not out.stopped
    # Twice for the text, twice for what is found out of the strings themselves.
    assert Looked.characters <= 16 * 4 * (len(tokens) + len(stop))


@given(st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4), st.data())
def test_stop_strings_that_overlap_are_found_as_by_looking_at_the_whole(
    stops: list[str], data: st.DataObject
) -> None:
    text = data.draw(st.text("abc", max_size=40))
    min_tokens = data.draw(st.integers(0, 10))
    include = data.draw(st.booleans())
    out = TextStream(Bytes(), [1], stops, min_tokens=min_tokens, include_stop=include)
    shown = ""
    for token in text.encode():
        shown += out.push(token)
        if out.stopped:
            break
    shown += out.flush()
    ends = [
        (at + len(stop), at)
        for stop in stops
        for at in range(len(text))
        if text.startswith(stop, at) and at + len(stop) > min_tokens
    ]
    end, start = min(ends, default=(len(text), len(text)))
    assert out.stopped == bool(ends)
    assert shown == text[: end if include else start]


@given(st.text("abc", max_size=20))
def test_nothing_shown_is_ever_part_of_a_stop_string(text: str) -> None:
    pieces, _ = stream(text, ["abc"])
    assert "abc" not in "".join(pieces)


def test_an_incomplete_character_is_held_and_then_shown() -> None:
    out = TextStream(Bytes(), [])
    shown = [out.push(byte) for byte in "é!".encode()]
    assert shown == ["", "é", "!"]


def test_a_broken_character_at_the_end_comes_with_the_flush() -> None:
    out = TextStream(Bytes(), [])
    assert out.push(0xC3) == ""
    assert out.flush() == "\ufffd"


def test_a_model_that_writes_only_broken_bytes_is_not_held_for_ever() -> None:
    out = TextStream(Bytes(), [])
    shown = "".join(out.push(0xC3) for _ in range(40))
    assert len(shown) >= 32


def test_text_held_for_a_stop_string_comes_when_it_turns_out_harmless() -> None:
    out = TextStream(Bytes(), [], ["END"])
    assert [out.push(b) for b in b"xENx"] == ["x", "", "", "ENx"]


def test_a_stop_string_in_the_last_flush_is_a_stop() -> None:
    out = TextStream(Bytes(), [], ["\ufffd"])
    assert out.push("é".encode()[0]) == ""
    assert out.flush() == ""
    assert out.stopped


def test_a_character_that_the_prompt_began_is_shown() -> None:
    out = TextStream(Bytes(), list("café".encode()[:-1]))
    assert "".join(out.push(token) for token in "é au lait".encode()[1:]) == "é au lait"


def test_a_space_that_a_tokenizer_drops_at_the_start_of_a_text_is_kept() -> None:
    out = TextStream(Stripping(), list(b"Hello"))
    assert "".join(out.push(token) for token in b" you") == " you"
    first = TextStream(Stripping(), [])
    assert "".join(first.push(token) for token in b" you  too") == "you  too"
    behind = TextStream(Stripping(), list(b" "))
    assert "".join(behind.push(token) for token in b" you") == " you"


_TEXTS = [
    "the cat(sat) on the mat",
    "  two  spaces\n\nand an end ",
    "naïve café 🙂€ ,x . y n't",
    "<|im_start|>user\nthe cat<|im_end|>",
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bytes_of_tokens_are_the_bytes_of_their_text(family: str) -> None:
    """After a token: some decoders drop spaces at the start of a text."""
    spelling = Spelling(tokenizer_of(family))
    for text in _TEXTS:
        ids = spelling._tokenizer.encode("the" + text, add_special_tokens=False)
        first, rest = ids[:1], ids[1:]
        whole = spelling.decode(ids, skip_special_tokens=False)
        start = spelling.decode(first, skip_special_tokens=False)
        assert start + b"".join(map(spelling.token_bytes, rest)).decode() == whole
        if family in EXACT and "<|" not in text:  # a space may stand behind a special token
            assert b"".join(map(spelling.token_bytes, ids)).lstrip() == f"the{text}".encode()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_text_is_that_of_all_its_tokens(family: str) -> None:
    spelling = Spelling(tokenizer_of(family))
    for text in _TEXTS:
        ids = spelling._tokenizer.encode(text, add_special_tokens=False)
        for skip in (True, False):
            out = TextStream(spelling, [], skip_special_tokens=skip)
            pieces = [*map(out.push, ids), out.flush()]
            assert "".join(pieces) == spelling.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("before", ["", " ", "  ", "the", "the "])
def test_a_prompt_of_blanks_or_of_special_tokens_ends_as_a_text_does(
    family: str, before: str
) -> None:
    spelling = Spelling(tokenizer_of(family, bos=True))
    begin = spelling._tokenizer.bos_token_id
    ids = spelling._tokenizer.encode(before, add_special_tokens=False)
    whole = [*ids, *spelling._tokenizer.encode(" cat", add_special_tokens=False)]
    for start in ([], [begin], [begin] * 8):
        said = text_after(spelling, start + ids, whole[len(ids) :])
        shown = [spelling.decode(start + some) for some in (ids, whole)]
        assert said == shown[1].removeprefix(shown[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_are_those_that_a_text_leaves_out(family: str) -> None:
    tokenizer = tokenizer_of(family, marks=True)
    spelling = Spelling(tokenizer)
    letter = tokenizer.encode("the", add_special_tokens=False)[-1]
    alone = spelling.decode([letter, letter])
    left_out = {i for i in range(len(tokenizer)) if spelling.decode([letter, i, letter]) == alone}
    assert left_out == set(spelling.special_tokens.values()) != set()
    for name, token_id in spelling.special_tokens.items():
        assert spelling.token_bytes(token_id).strip() == name.encode()
    assert spelling.token_bytes(len(tokenizer) + 5) == b""


@pytest.mark.parametrize("family", EXACT)
@pytest.mark.parametrize("before", ["the ", "the €"])
def test_a_character_that_the_end_cuts_is_one_mark(family: str, before: str) -> None:
    """Its bytes are no reason to lose the characters before it, which were shown."""
    spelling = Spelling(tokenizer_of(family))
    ids = spelling._tokenizer.encode(before + "🙂", add_special_tokens=False)
    for cut in range(1, 4):
        out = TextStream(spelling, [])
        text = "".join(map(out.push, ids[:-cut])) + out.flush()
        assert text.lstrip() == before + "\ufffd"
