"""Tokens of one request become token events."""

from __future__ import annotations

from collections.abc import Sequence

from remix_runtime.contracts import FinishReason, PositionLogprobs, TokenEvent, TokenLogprob
from remix_runtime.engines.completion import Completion
from tests.engines import request

EOS = 0
HALF = 200
"""The first byte of a character: it shows as U+FFFD where nothing follows."""


def decode(ids: Sequence[int]) -> str:
    return "".join("\ufffd" if i == HALF else chr(i) for i in ids)


def completion(**params: object) -> Completion:
    return Completion(request([1], **params), decode, {EOS})


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
