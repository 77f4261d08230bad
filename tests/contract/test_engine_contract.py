"""What every engine must do, whatever it is made of. One suite, every engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from remix_runtime.contracts import FinishReason, GenerationRequest, TokenEvent
from remix_runtime.errors import (
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)
from tests.contract.conftest import MAX_WAITING, PROMPT, Setup
from tests.engines import Completion, complete, complete_all, request


async def aborted_after_one_token(
    setup: Setup, item: GenerationRequest
) -> AsyncIterator[TokenEvent]:
    events = setup.engine.generate(item)
    yield await anext(events)
    await setup.engine.abort(item.request_id)
    async for event in events:
        yield event


async def test_a_started_engine_is_ready_and_says_what_it_serves(setup: Setup) -> None:
    health, model = setup.engine.health(), setup.engine.model
    assert health.alive
    assert health.ready
    assert model.max_model_len > 32
    ids = setup.engine.tokenizer.encode("Hello, wörld", add_special_tokens=False)
    assert all(0 <= i < model.vocab_size for i in ids)
    assert setup.engine.tokenizer.decode(ids) == "Hello, wörld"


async def test_greedy_is_the_same_again_and_in_a_crowd(setup: Setup) -> None:
    digests = [(await setup.engine.load_adapter(f)).digest for f in setup.adapters]
    names = [None, *digests]
    alone = [(await complete(setup.engine, request(PROMPT, name))).token_ids for name in names]
    assert len({tuple(tokens) for tokens in alone}) == len(names)
    crowd = await complete_all(setup.engine, [request(PROMPT, n) for n in names])
    assert [c.token_ids for c in crowd] == alone


async def test_max_tokens_ends_with_length(setup: Setup) -> None:
    done = await complete(setup.engine, request(PROMPT, max_tokens=5, ignore_eos=True))
    assert len(done.token_ids) == 5
    assert done.finish_reason == FinishReason.LENGTH
    assert done.text == setup.engine.tokenizer.decode(done.token_ids)
    assert done.queue_seconds is not None
    assert done.queue_seconds >= 0


async def test_a_stop_string_ends_the_text_before_it(setup: Setup) -> None:
    whole = await complete(setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True))
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 2]
    assert stop
    done = await complete(
        setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True, stop=(stop,))
    )
    assert done.text == whole.text[: whole.text.find(stop)]
    assert done.finish_reason == FinishReason.STOP


async def test_a_stop_token_ends_the_completion(setup: Setup) -> None:
    whole = await complete(setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True))
    stop = whole.token_ids[4]
    done = await complete(
        setup.engine, request(PROMPT, max_tokens=12, ignore_eos=True, stop_token_ids=(stop,))
    )
    assert done.token_ids == whole.token_ids[: whole.token_ids.index(stop) + 1]
    assert done.finish_reason == FinishReason.STOP


async def test_the_end_token_ends_the_completion_unless_it_is_ignored(setup: Setup) -> None:
    (eos, *_) = setup.engine.model.eos_token_ids
    params = {"max_tokens": 3, "logit_bias": {eos: 100.0}}
    done = await complete(setup.engine, request(PROMPT, **params))
    assert (done.token_ids, done.text, done.finish_reason) == ([eos], "", FinishReason.STOP)
    done = await complete(setup.engine, request(PROMPT, **params, ignore_eos=True))
    assert (done.token_ids, done.finish_reason) == ([eos] * 3, FinishReason.LENGTH)


async def test_only_the_first_event_tells_the_time_in_the_queue(setup: Setup) -> None:
    item = request(PROMPT, max_tokens=3, ignore_eos=True)
    told = [event.queue_seconds is not None async for event in setup.engine.generate(item)]
    assert told == [True, False, False]


async def test_an_abort_after_one_token_tells_the_time_in_the_queue_no_second_time(
    setup: Setup,
) -> None:
    item = request(PROMPT, max_tokens=200, ignore_eos=True)
    told = [event.queue_seconds async for event in aborted_after_one_token(setup, item)]
    assert told[0] is not None
    assert set(told[1:]) == {None}


async def test_an_abort_brings_the_text_that_was_held_back(setup: Setup) -> None:
    """All of it is: it may always be the beginning of this stop string."""
    whole = await complete(setup.engine, request(PROMPT, max_tokens=200, ignore_eos=True))
    stop = f"{whole.text}-never said"
    item = request(PROMPT, max_tokens=200, ignore_eos=True, stop=(stop,))
    events = [event async for event in aborted_after_one_token(setup, item)]
    assert [event.text for event in events[:-1]] == [""] * (len(events) - 1)
    assert events[-1].finish_reason == FinishReason.ABORT
    tokens = [token for event in events for token in event.token_ids]
    assert events[-1].text == setup.engine.tokenizer.decode(tokens) != ""


async def test_a_stop_string_that_the_end_completes_is_a_stop(setup: Setup) -> None:
    """Half a character is held back until the last token shows that nothing follows."""
    tokenizer, vocabulary = setup.engine.tokenizer, range(setup.engine.model.vocab_size)
    half = next(i for i in vocabulary if tokenizer.decode([i]) == "\ufffd")
    params = {"max_tokens": 1, "logit_bias": {half: 100.0}, "ignore_eos": True}
    shown = await complete(setup.engine, request(PROMPT, **params))
    assert (shown.text, shown.finish_reason) == ("\ufffd", FinishReason.LENGTH)
    stopped = await complete(setup.engine, request(PROMPT, **params, stop=("\ufffd",)))
    assert (stopped.token_ids, stopped.text) == (shown.token_ids, "")
    assert stopped.finish_reason == FinishReason.STOP


async def test_logprobs_come_with_every_token(setup: Setup) -> None:
    done = await complete(setup.engine, request(PROMPT, max_tokens=4, ignore_eos=True, logprobs=3))
    assert [p.chosen.token_id for p in done.logprobs] == done.token_ids
    for position in done.logprobs:
        values = [t.logprob for t in position.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert position.chosen.logprob <= values[0] <= 0
        assert position.top[0].token_id == position.chosen.token_id


async def test_a_seed_repeats_and_different_seeds_differ(setup: Setup) -> None:
    async def tokens(seed: int) -> list[int]:
        item = request(PROMPT, max_tokens=12, temperature=1.5, seed=seed, ignore_eos=True)
        return (await complete(setup.engine, item)).token_ids

    first = await tokens(1)
    assert await tokens(1) == first
    assert [await tokens(seed) for seed in (2, 3, 4)] != [first] * 3


@pytest.mark.parametrize("prompt", [[], [-1], [10**6]])
async def test_a_bad_prompt_is_refused_and_the_next_one_served(
    setup: Setup, prompt: list[int]
) -> None:
    with pytest.raises(InvalidRequestError):
        await complete(setup.engine, request(prompt))
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_a_request_over_the_context_is_refused(setup: Setup) -> None:
    limit = setup.engine.model.max_model_len
    with pytest.raises(InvalidRequestError) as caught:
        await complete(setup.engine, request(PROMPT, max_tokens=limit))
    assert caught.value.code == "context_length_exceeded"
    assert f"maximum context length is {limit} tokens" in str(caught.value)


async def test_abort_ends_the_request_and_frees_everything(setup: Setup) -> None:
    item = request(PROMPT, max_tokens=200, ignore_eos=True)
    events = setup.engine.generate(item)
    await anext(events)
    await setup.engine.abort(item.request_id)
    rest = [event async for event in events]
    assert rest[-1].finish_reason == FinishReason.ABORT
    await setup.engine.abort(item.request_id)
    await setup.engine.abort("never heard of")
    stats = setup.engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)


async def some_turns() -> None:
    """Enough for a request to be in the queue, and by far too few for its end."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.parametrize("moment", ["queued", "running"])
async def test_closing_the_iterator_aborts(setup: Setup, moment: str) -> None:
    blockers = [request(PROMPT, max_tokens=150, ignore_eos=True) for _ in range(2)]
    ahead = []
    if moment == "queued":
        ahead = [asyncio.create_task(complete(setup.engine, item)) for item in blockers]
        await some_turns()
    events = setup.engine.generate(request(PROMPT, max_tokens=200, ignore_eos=True))
    if moment == "running":
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
    else:
        waiting = asyncio.create_task(anext(events))
        await some_turns()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    for item in blockers:
        await setup.engine.abort(item.request_id)
    await asyncio.gather(*ahead)
    for _ in range(200):
        stats = setup.engine.stats()
        if (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0):
            break
        await asyncio.sleep(0.01)
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_a_full_queue_refuses_at_once_and_recovers(setup: Setup) -> None:
    items = [request(PROMPT, max_tokens=60, ignore_eos=True) for _ in range(2 + MAX_WAITING)]
    tasks = [asyncio.create_task(complete(setup.engine, item)) for item in items]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError) as caught:
        await asyncio.wait_for(complete(setup.engine, request(PROMPT)), 0.5)
    assert caught.value.retry_after > 0
    done = await asyncio.gather(*tasks)
    assert {len(c.token_ids) for c in done} == {60}
    assert (await complete(setup.engine, request(PROMPT))).token_ids


async def test_a_tenant_that_fills_the_queue_is_refused_by_itself_only(setup: Setup) -> None:
    def start(tenant: str) -> asyncio.Task[Completion]:
        item = request(PROMPT, tenant=tenant, max_tokens=40, ignore_eos=True)
        return asyncio.create_task(complete(setup.engine, item))

    loud = [start("loud") for _ in range(2 + MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await asyncio.wait_for(complete(setup.engine, request(PROMPT, tenant="loud")), 0.5)
    quiet = [start("quiet") for _ in range((2 + MAX_WAITING) // 2)]
    await asyncio.sleep(0)
    with pytest.raises(EngineBusyError):
        await asyncio.wait_for(complete(setup.engine, request(PROMPT, tenant="quiet")), 0.5)
    third = start("another")
    done = await asyncio.gather(*loud, *quiet, third)
    assert {len(c.token_ids) for c in done} == {40}


async def test_the_meter_tells_what_was_scheduled_whether_anybody_heard_of_it(
    setup: Setup,
) -> None:
    whole = request(PROMPT, max_tokens=5, ignore_eos=True)
    await complete(setup.engine, whole)
    assert (whole.meter.prompt_tokens, whole.meter.output_tokens) == (len(PROMPT), 5)
    # Long enough for none to end before it is cancelled.
    items = [request(PROMPT, max_tokens=200, ignore_eos=True) for _ in range(3)]
    tasks = [asyncio.create_task(complete(setup.engine, item)) for item in items]
    while items[1].meter.prompt_tokens < len(PROMPT):  # noqa: ASYNC110 - no event tells of it
        await asyncio.sleep(0)
    for task in reversed(tasks):  # or the third one would get the place of the first
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    told = [item.meter.prompt_tokens for item in items]
    assert told == [len(PROMPT), len(PROMPT), 0], "the third one was in the queue"
    refused = request([10**9])
    with pytest.raises(InvalidRequestError):
        await complete(setup.engine, refused)
    assert refused.meter.tokens == 0


async def test_draining_lets_requests_end_and_refuses_new_ones(setup: Setup) -> None:
    events = setup.engine.generate(request(PROMPT, max_tokens=30, ignore_eos=True))
    count = len((await anext(events)).token_ids)
    stopping = asyncio.create_task(setup.engine.stop(drain_seconds=20))
    await asyncio.sleep(0)
    assert not setup.engine.health().ready
    with pytest.raises(EngineBusyError):
        await complete(setup.engine, request(PROMPT))
    async for event in events:
        count += len(event.token_ids)
        last = event.finish_reason
    await stopping
    assert (count, last) == (30, FinishReason.LENGTH)
    with pytest.raises((EngineBusyError, EngineDeadError)):
        await complete(setup.engine, request(PROMPT))
    await setup.engine.stop()


async def test_stopping_without_patience_aborts(setup: Setup) -> None:
    events = setup.engine.generate(request(PROMPT, max_tokens=200, ignore_eos=True))
    await anext(events)
    stopping = asyncio.create_task(setup.engine.stop())
    reasons = [event.finish_reason async for event in events]
    await asyncio.wait_for(stopping, 120)
    assert reasons[-1] == FinishReason.ABORT


async def test_a_tenant_with_a_long_queue_does_not_hold_up_another(setup: Setup) -> None:
    """All of the loud tenant's requests came first; the quiet one is served before its last."""
    order: list[str] = []

    async def run(tenant: str) -> None:
        # Long enough for all to be there before the first one ends, also on a busy machine.
        item = request(PROMPT, tenant=tenant, max_tokens=120, ignore_eos=True)
        await complete(setup.engine, item)
        order.append(tenant)

    loud = [asyncio.create_task(run("loud")) for _ in range(2 + MAX_WAITING - 1)]
    await asyncio.sleep(0)
    await asyncio.gather(run("quiet"), *loud)
    assert "loud" in order[order.index("quiet") + 1 :]
    assert order.index("quiet") <= 3
