"""Streamed text equals the whole text, whatever the token boundaries."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.engines.text import TextStream, text_after


def decode_bytes(token_ids: Sequence[int]) -> str:
    return bytes(token_ids).decode("utf-8", errors="replace")


def stream(text: str, stop: Sequence[str] = (), prompt: bytes = b"") -> tuple[list[str], bool]:
    out = TextStream(decode_bytes, list(prompt), stop)
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


def decode_runs(token_ids: Sequence[int]) -> str:
    """Bytes as a SentencePiece tokenizer spells them: a run that is not UTF-8 has no letter."""
    try:
        return bytes(token_ids).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(token_ids)


@given(st.text("a€🙂é", min_size=1, max_size=6), st.text("a€🙂é", max_size=6))
def test_a_prompt_whose_last_tokens_begin_inside_a_character(prompt: str, text: str) -> None:
    out = TextStream(decode_runs, list(prompt.encode()))
    assert "".join(map(out.push, text.encode())) + out.flush() == text
    assert text_after(decode_runs, list(prompt.encode()), list(text.encode())) == text


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


@given(st.text("abc", max_size=20))
def test_nothing_shown_is_ever_part_of_a_stop_string(text: str) -> None:
    pieces, _ = stream(text, ["abc"])
    assert "abc" not in "".join(pieces)


def test_an_incomplete_character_is_held_and_then_shown() -> None:
    out = TextStream(decode_bytes, [])
    shown = [out.push(byte) for byte in "é!".encode()]
    assert shown == ["", "é", "!"]


def test_a_broken_character_at_the_end_comes_with_the_flush() -> None:
    out = TextStream(decode_bytes, [])
    assert out.push(0xC3) == ""
    assert out.flush() == "\ufffd"


def test_a_model_that_writes_only_broken_bytes_is_not_held_for_ever() -> None:
    out = TextStream(decode_bytes, [])
    shown = "".join(out.push(0xC3) for _ in range(40))
    assert len(shown) >= 32


def test_text_held_for_a_stop_string_comes_when_it_turns_out_harmless() -> None:
    out = TextStream(decode_bytes, [], ["END"])
    assert [out.push(b) for b in b"xENx"] == ["x", "", "", "ENx"]


def test_a_stop_string_in_the_last_flush_is_a_stop() -> None:
    out = TextStream(decode_bytes, [], ["\ufffd"])
    assert out.push("é".encode()[0]) == ""
    assert out.flush() == ""
    assert out.stopped


def test_a_character_that_the_prompt_began_is_shown() -> None:
    out = TextStream(decode_bytes, list("café".encode()[:-1]))
    assert "".join(out.push(token) for token in "é au lait".encode()[1:]) == "é au lait"


def test_a_space_that_a_tokenizer_drops_at_the_start_of_a_text_is_kept() -> None:
    out = TextStream(lambda ids: decode_bytes(ids).removeprefix(" "), list(b"Hello"))
    assert "".join(out.push(token) for token in b" you") == " you"
