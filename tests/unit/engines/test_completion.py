"""Tokens of one request become token events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from remix_runtime.contracts import FinishReason, PositionLogprobs, TokenEvent, TokenLogprob
from remix_runtime.engines.completion import Completion
from tests.engines import request

EOS = 0
START = 1
HALF = 200
"""The first byte of a character: it shows as U+FFFD where nothing follows."""


class Letters:
    """A token for each byte, and two special ones."""

    special_tokens: Mapping[str, int] = {"<eos>": EOS, "<start>": START}

    def token_bytes(self, token_id: int) -> bytes:
        names = {at: name.encode() for name, at in self.special_tokens.items()}
        return names.get(token_id, bytes([token_id]))

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        special = self.special_tokens.values()
        shown = [i for i in token_ids if not skip_special_tokens or i not in special]
        return b"".join(map(self.token_bytes, shown)).decode(errors="replace")


def completion(**params: object) -> Completion:
    return Completion(request([90], **params), Letters(), {EOS})


def text_of(token_ids: Sequence[int], **params: object) -> tuple[str, int, FinishReason | None]:
    """The text of tokens that come one by one, how many were taken, and why the last one ended."""
    made, text, event = completion(**{"max_tokens": 99} | params), "", None
    for taken, token_id in enumerate(token_ids, start=1):
        event = made.take([token_id])
        text += event.text
        if event.finish_reason is not None:
            return text, taken, event.finish_reason
    return text, len(token_ids), None


def position(token_id: int) -> PositionLogprobs:
    return PositionLogprobs(chosen=TokenLogprob(token_id=token_id, logprob=-1.0), top=())


def test_several_tokens_come_as_one_event_and_the_time_in_the_queue_once() -> None:
    made = completion(max_tokens=9)
    made.scheduled()
    first = made.take([65, 66], [position(65), position(66)])
    second = made.take([67])
    assert (first.token_ids, first.text, first.finish_reason) == ((65, 66), "AB", None)
    assert first.queue_seconds is not None
    assert (second.text, second.logprobs, second.queue_seconds) == ("C", None, None)
    assert made.abort().queue_seconds is None


def test_an_abort_before_the_first_token_tells_the_time_in_the_queue_if_there_was_a_step() -> None:
    assert completion(max_tokens=9).abort().queue_seconds is None
    made = completion(max_tokens=9)
    made.scheduled()
    assert made.abort().queue_seconds is not None


def test_what_follows_an_end_is_dropped_with_its_logprobs() -> None:
    made = completion(max_tokens=9)
    event = made.take([65, EOS, 66], [position(i) for i in (65, EOS, 66)])
    assert event.finish_reason == FinishReason.STOP
    assert (event.token_ids, event.text[:1]) == ((65, EOS), "A")
    assert event.logprobs == (position(65), position(EOS))


def test_an_ignored_end_goes_on_and_an_own_stop_token_does_not() -> None:
    made = completion(max_tokens=9, ignore_eos=True, stop_token_ids=(66,))
    assert made.take([EOS]).finish_reason is None
    assert made.take([66, 67]).finish_reason == FinishReason.STOP


def test_a_stop_string_over_two_outputs_never_shows() -> None:
    made = completion(max_tokens=9, stop=("BC",))
    first, last = made.take([65, 66]), made.take([67, 68])
    assert (first.text, first.finish_reason) == ("A", None)
    assert (last.text, last.token_ids, last.finish_reason) == ("", (67,), FinishReason.STOP)


def test_the_last_token_shows_what_was_held_back() -> None:
    event = completion(max_tokens=2, stop=("BC",)).take([65, 66, 67])
    assert event.finish_reason == FinishReason.LENGTH
    assert (event.token_ids, event.text) == ((65, 66), "AB")


def test_a_stop_string_that_the_last_flush_completes_is_a_stop() -> None:
    event = completion(max_tokens=2, stop=("\ufffd",)).take([65, HALF])
    assert (event.text, event.finish_reason) == ("A", FinishReason.STOP)


def test_an_abort_shows_what_was_held_back() -> None:
    made = completion(max_tokens=9, stop=("BC",))
    made.take([65, 66])
    assert made.abort() == TokenEvent(
        token_ids=(), text="B", finish_reason=FinishReason.ABORT, queue_seconds=None
    )


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


@pytest.mark.parametrize("skip", [True, False])
def test_a_stop_string_that_names_a_special_token_stops_at_it(skip: bool) -> None:
    tokens, params = [65, START, 66], {"stop": ("<start>",), "skip_special_tokens": skip}
    assert text_of(tokens, **params) == ("A", 2, STOP)
    assert text_of(tokens, **params, include_stop_str_in_output=True) == ("A<start>", 2, STOP)
    spelled = [65, *b"<start>", 66]
    assert text_of(spelled, **params) == ("A", 8, STOP)


def test_a_stop_token_is_shown_where_stops_are_and_a_special_one_where_both_are() -> None:
    for token_id in (66, START):
        assert text_of([65, token_id], stop_token_ids=(token_id,)) == ("A", 2, STOP)
    shown: dict[str, bool] = {"include_stop_str_in_output": True}
    assert text_of([65, 66], stop_token_ids=(66,), **shown) == ("AB", 2, STOP)
    assert text_of([65, START], stop_token_ids=(START,), **shown) == ("A", 2, STOP)
    both = {**shown, "skip_special_tokens": False}
    assert text_of([65, START], stop_token_ids=(START,), **both) == ("A<start>", 2, STOP)


def test_special_tokens_are_shown_where_they_are_asked_for_but_not_the_end() -> None:
    assert text_of([START, 65, EOS]) == ("A", 3, STOP)
    assert text_of([START, 65, EOS], skip_special_tokens=False) == ("<start>A", 3, STOP)
    ignored = text_of([START, 65, EOS, 66], skip_special_tokens=False, ignore_eos=True)
    assert ignored == ("<start>A<eos>B", 4, None)


def test_a_stop_string_is_shown_where_it_is_asked_for_and_nothing_after_it() -> None:
    params = {"stop": ("BC",), "include_stop_str_in_output": True}
    assert text_of([65, 66, 67, 68], **params) == ("ABC", 3, STOP)


@pytest.mark.parametrize(
    ("min_tokens", "expected"),
    [
        (0, ("x", 3, STOP)),
        (2, ("x", 3, STOP)),
        (3, ("xABx", 6, STOP)),
        (5, ("xABx", 6, STOP)),
        (6, ("xABxAB", 6, None)),
    ],
)
def test_a_stop_string_counts_after_min_tokens(
    min_tokens: int, expected: tuple[str, int, FinishReason | None]
) -> None:
    """It may begin before."""
    assert text_of(b"xABxAB", min_tokens=min_tokens, stop=("AB",)) == expected
    special = text_of([120, 65, START] * 2, min_tokens=min_tokens, stop=("<start>",))
    assert special[1:] == expected[1:]
