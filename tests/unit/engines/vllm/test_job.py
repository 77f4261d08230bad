"""What vLLM gives, as token events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remix_runtime.contracts import FinishReason, PositionLogprobs, TokenEvent, TokenLogprob
from remix_runtime.engines.vllm.job import Job, logprobs_of
from tests.engines import request

EOS = 0


def decode(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


def job(**params: object) -> Job:
    return Job(request([1], **params), decode, frozenset({EOS}))


def events(made: Job) -> list[TokenEvent]:
    found = []
    while not made.events.empty():
        event = made.events.get_nowait()
        assert isinstance(event, TokenEvent)
        found.append(event)
    return found


def position(token_id: int) -> PositionLogprobs:
    return PositionLogprobs(chosen=TokenLogprob(token_id=token_id, logprob=-1.0), top=())


def test_several_tokens_come_as_one_event_and_the_time_in_the_queue_once() -> None:
    made = job(max_tokens=9)
    made.admitted()
    assert made.take([65, 66], [position(65), position(66)]) is None
    assert made.take([67], None) is None
    first, second = events(made)
    assert (first.token_ids, first.text, first.finish_reason) == ((65, 66), "AB", None)
    assert first.queue_seconds is not None
    assert (second.text, second.logprobs, second.queue_seconds) == ("C", None, None)


def test_what_follows_an_end_is_dropped_with_its_logprobs() -> None:
    made = job(max_tokens=9)
    reason = made.take([65, EOS, 66], [position(i) for i in (65, EOS, 66)])
    (event,) = events(made)
    assert reason == event.finish_reason == FinishReason.STOP
    assert (event.token_ids, event.text[:1]) == ((65, EOS), "A")
    assert event.logprobs == (position(65), position(EOS))


def test_an_ignored_end_goes_on_and_an_own_stop_token_does_not() -> None:
    made = job(max_tokens=9, ignore_eos=True, stop_token_ids=(66,))
    assert made.take([EOS], None) is None
    assert made.take([66, 67], None) == FinishReason.STOP


def test_a_stop_string_over_two_outputs_never_shows() -> None:
    made = job(max_tokens=9, stop=("BC",))
    assert made.take([65, 66], None) is None
    assert made.take([67, 68], None) == FinishReason.STOP
    first, last = events(made)
    assert (first.text, last.text, last.token_ids) == ("A", "", (67,))


def test_the_last_token_shows_what_was_held_back() -> None:
    made = job(max_tokens=2, stop=("BC",))
    assert made.take([65, 66, 67], None) == FinishReason.LENGTH
    (event,) = events(made)
    assert (event.token_ids, event.text) == ((65, 66), "AB")


def test_an_abort_shows_what_was_held_back() -> None:
    made = job(max_tokens=9, stop=("BC",))
    made.take([65, 66], None)
    made.abort()
    assert events(made)[-1] == TokenEvent(
        token_ids=(), text="B", finish_reason=FinishReason.ABORT, queue_seconds=None
    )


@dataclass
class Found:
    logprob: float
    rank: int


def test_the_chosen_token_is_among_the_top_only_by_its_rank() -> None:
    found = {7: Found(-3.0, 5), 9: Found(-0.1, 1), 4: Found(-0.5, 2), 3: Found(-0.5, 2)}
    told = logprobs_of(found, 7, 2)
    assert told.chosen == TokenLogprob(token_id=7, logprob=-3.0)
    assert [top.token_id for top in told.top] == [9, 3]
    assert logprobs_of(found, 7, 0).top == ()
