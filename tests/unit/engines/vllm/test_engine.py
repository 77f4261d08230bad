"""`VllmEngine` without vLLM: who runs when, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from remix_runtime.contracts import FinishReason, Grammar, GrammarKind, TokenEvent
from remix_runtime.engines.vllm.engine import PATIENCE, VllmEngine
from remix_runtime.errors import (
    AdapterNotLoadedError,
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    RemixError,
)
from tests.engines import Completion, complete, request
from tests.models import EOS_ID
from tests.unit.engines.vllm.stub import settled, started, until
from tests.unit.engines.vllm.test_job import Found
from tests.wrong_bases import WRONG_MODELS

PROMPT = [5, 17, 99]


def ask(
    engine: VllmEngine,
    adapter: str | None = None,
    *,
    tenant: str = "",
    cache_salt: str = "",
    **params: object,
) -> tuple[str, asyncio.Task[Completion]]:
    item = request(PROMPT, adapter, tenant=tenant, **params)
    item = replace(item, cache_salt=cache_salt)
    return item.request_id, asyncio.create_task(complete(engine, item))


async def ended(*tasks: asyncio.Task[Completion]) -> list[Completion | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)


async def test_a_wrong_base_is_refused_before_vllm_starts(base: Path, tmp_path: Path) -> None:
    for fault in ("missing head", "a LoRA beside"):
        damage, names = WRONG_MODELS[fault]
        wrong = tmp_path / fault
        shutil.copytree(base, wrong)
        damage(wrong)
        with pytest.raises(ConfigError, match=names):
            await started(wrong)


async def test_tenants_take_turns_and_each_has_a_cache_of_its_own(base: Path) -> None:
    engine, backend = await started(base, max_running=1)
    asked = [ask(engine, tenant=tenant) for tenant in ("loud", "loud", "loud", "quiet")]
    for _ in asked:
        await settled()
        assert engine.stats().running == 1
        backend.end(backend.running)
    await ended(*(task for _, task in asked))
    ids = [request_id for request_id, _ in asked]
    assert backend.started == [ids[0], ids[3], ids[1], ids[2]]
    assert len({backend.salts[i] for i in ids[:3]}) == 1
    assert len({backend.salts[i] for i in ids}) == 2
    assert (engine.stats().running, engine.stats().waiting) == (0, 0)


async def test_cached_tokens_are_told_with_the_first_event(base: Path) -> None:
    engine, backend = await started(base)
    item = request(PROMPT, max_tokens=3)
    events: list[TokenEvent] = []

    async def listen() -> None:
        events.extend([event async for event in engine.generate(item)])

    task = asyncio.create_task(listen())
    await settled()
    backend.give(item.request_id, [1], cached=2)
    backend.give(item.request_id, [1])
    backend.end([item.request_id])
    await asyncio.wait_for(task, 120)
    assert [event.cached_tokens for event in events] == [2, None, None]
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits) == (len(PROMPT), 2)


async def test_salts_are_as_many_as_pairs_of_tenant_and_salt(base: Path) -> None:
    engine, backend = await started(base)
    pairs = [("", ""), ("", "t"), ("t", ""), ("t", "x"), ("t", "x\n"), ("t\nx", "")]
    asked = [ask(engine, tenant=tenant, cache_salt=salt) for tenant, salt in pairs]
    await settled()
    assert len({backend.salts[request_id] for request_id, _ in asked}) == len(pairs)
    backend.end(list(backend.running))
    await ended(*(task for _, task in asked))


async def test_outputs_are_charged_to_their_tenant(base: Path) -> None:
    engine, backend = await started(base, max_running=2)
    first, one = ask(engine, tenant="writer", max_tokens=40)
    second, two = ask(engine, tenant="reader", max_tokens=40)
    queued = [ask(engine, tenant=tenant) for tenant in ("writer", "reader")]
    await settled()
    backend.give(first, [1] * 20)
    await settled()
    backend.end([second])
    await settled()
    assert backend.started[2:] == [queued[1][0]], "who wrote little comes first"
    backend.end(list(backend.running))
    await settled()
    backend.end(list(backend.running))
    await ended(one, two, *(task for _, task in queued))


async def test_others_pass_a_request_whose_adapter_is_read(base: Path, folders: list[Path]) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    cold, hot = [(await engine.load_adapter(folder)).digest for folder in folders[:2]]
    backend.add_gate.clear()
    first, waits = ask(engine, cold)
    plain, passes = ask(engine)
    await until(lambda: engine.stats().adapters_on_host == 0)  # the other one is leaving
    assert backend.started == [plain]
    assert engine.stats().waiting == 1
    backend.end([plain])
    await ended(passes)
    backend.add_gate.set()
    await until(lambda: backend.started == [plain, first])
    backend.end([first])
    (done,) = await ended(waits)
    assert isinstance(done, Completion)
    assert backend.adds == [cold, hot, cold]
    assert backend.most_loras == 1


async def test_an_adapter_without_a_slot_is_passed_a_bounded_number_of_times(
    base: Path, folders: list[Path]
) -> None:
    """Inside vLLM it would wait for as long as others' requests overlap."""
    engine, backend = await started(base, max_running=4, adapter_slots=1, max_waiting=300)
    mine, theirs = [(await engine.load_adapter(folder)).digest for folder in folders[:2]]
    tasks = [ask(engine, theirs, tenant="a")]
    await settled()
    late, waits = ask(engine, mine, tenant="b")
    tasks += [ask(engine, theirs, tenant="a") for _ in range(2 * PATIENCE)]
    while late not in backend.started:
        await settled()
        assert len({number for _, number in backend.running.values()}) <= 1
        backend.end(list(backend.running)[:1])  # the others overlap with those that follow
        assert len(backend.started) <= PATIENCE + 2
    assert len(backend.started) == PATIENCE + 2, "as many as may, do pass"
    while not all(task.done() for _, task in tasks):
        backend.end(list(backend.running))
        await settled()
    await ended(waits)


async def test_a_request_aborted_before_its_first_step_keeps_nothing(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base, max_running=1)
    digest = (await engine.load_adapter(folders[0])).digest
    request_id, task = ask(engine, digest)
    await asyncio.sleep(0)  # admitted, and its run has not begun
    assert engine.stats().running == 1
    await engine.abort(request_id)
    (done,) = await ended(task)
    assert isinstance(done, Completion)
    assert done.finish_reason == FinishReason.ABORT
    assert engine.stats().running == 0
    assert backend.started == []
    await asyncio.wait_for(engine.unload_adapter(digest), 120)
    assert backend.loras == {}


async def test_an_adapter_stays_until_vllm_knows_that_its_request_ended(
    base: Path, folders: list[Path]
) -> None:
    """The caller hears of a stop string at once, and goes."""
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    digest = (await engine.load_adapter(folders[0])).digest
    request_id, task = ask(engine, digest, stop=("A",))
    await settled()
    backend.close_gate.clear()
    backend.give(request_id, engine.tokenizer.encode("xA", add_special_tokens=False))
    (done,) = await ended(task)
    assert isinstance(done, Completion)
    assert (done.text, done.finish_reason) == ("x", FinishReason.STOP)
    assert request_id in backend.running
    unload = asyncio.create_task(engine.unload_adapter(digest))
    await settled()
    assert not unload.done()
    assert list(backend.loras.values()) == [digest]
    backend.close_gate.set()
    await asyncio.wait_for(unload, 120)
    assert (backend.running, backend.loras) == ({}, {})
    assert engine.stats().running == 0


async def test_an_aborted_requests_adapter_stays_until_vllm_has_let_go(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base)
    digest = (await engine.load_adapter(folders[0])).digest
    request_id, task = ask(engine, digest)
    await settled()
    backend.close_gate.clear()
    abort = asyncio.create_task(engine.abort(request_id))
    unload = asyncio.create_task(engine.unload_adapter(digest))
    await settled()
    assert not abort.done()
    assert not unload.done()
    backend.close_gate.set()
    await asyncio.wait_for(asyncio.gather(abort, unload, task), 120)
    assert backend.loras == {}


@pytest.mark.parametrize("last", [None, ValueError("inside")])
async def test_a_request_that_vllm_gives_up_fails_alone(base: Path, last: Exception | None) -> None:
    engine, backend = await started(base)
    (bad, failing), (good, going) = ask(engine), ask(engine)
    await settled()
    backend.put(bad, last)
    backend.end([good])
    failed, done = await ended(failing, going)
    assert isinstance(failed, RemixError)
    assert "inside" not in str(failed)
    assert isinstance(done, Completion)
    assert engine.stats().running == 0
    assert engine.health().ready


async def test_an_answer_is_whole_with_the_token_that_ends_its_grammar(base: Path) -> None:
    """vLLM would draw an end of the text, which nobody needs."""
    engine, backend = await started(base)
    grammar = Grammar(kind=GrammarKind.REGEX, text="ab+|c")
    encode = partial(engine.tokenizer.encode, add_special_tokens=False)
    tasks = [ask(engine, grammar=grammar, ignore_eos=True, max_tokens=9) for _ in range(3)]
    await until(lambda: len(backend.running) == 3)
    (one, _), (two, _), (bad, _) = tasks
    backend.give(one, encode("c"))
    backend.give(two, encode("a"))
    backend.give(two, [*encode("b"), EOS_ID])
    backend.give(bad, encode("x"))
    first, second, broken = await ended(*(task for _, task in tasks))
    assert isinstance(first, Completion)
    assert (first.text, first.finish_reason) == ("c", FinishReason.STOP)
    assert isinstance(second, Completion)
    assert (second.text, second.finish_reason) == ("ab", FinishReason.STOP)
    assert isinstance(broken, RemixError), "an answer never breaks its grammar"
    assert backend.running == {}


async def test_a_prompt_alone_is_a_token_that_is_dropped(base: Path) -> None:
    engine, backend = await started(base)
    item = request(PROMPT, max_tokens=0, prompt_logprobs=1)
    events = engine.generate(item)
    task = asyncio.create_task(anext(events))
    await settled()
    found = [None, {17: Found(-2.0, 7), 5: Found(-0.5, 1)}, {99: Found(-0.25, 1)}]
    backend.give(item.request_id, [3], None, found)
    event = await task
    assert (event.token_ids, event.text, event.finish_reason) == ((), "", FinishReason.LENGTH)
    assert event.prompt_logprobs is not None
    shown = [p and (p.chosen.token_id, [t.token_id for t in p.top]) for p in event.prompt_logprobs]
    assert shown == [None, (17, [5]), (99, [99])]
    full = request([1] * backend.max_model_len, max_tokens=0)
    with pytest.raises(InvalidRequestError):
        await complete(engine, full)


async def test_everybody_hears_of_the_engines_death(base: Path, folders: list[Path]) -> None:
    engine, backend = await started(base, max_running=1, adapter_slots=1, host_adapters=1)
    cold, hot = [(await engine.load_adapter(folder)).digest for folder in folders[:2]]
    asked = [ask(engine, adapter) for adapter in (hot, cold, None)]
    await settled()
    backend.add_gate.clear()
    load = asyncio.create_task(engine.load_adapter(folders[2]))
    unload = asyncio.create_task(engine.unload_adapter(hot))
    await until(lambda: engine._adapters.needs_room)
    backend.die()
    results = await ended(*(task for _, task in asked))
    assert [type(result) for result in results] == [EngineDeadError] * 3
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(load, 120)
    with contextlib.suppress(EngineDeadError):  # the load may have dropped it before
        await asyncio.wait_for(unload, 120)
    assert not engine.health().alive
    with pytest.raises(EngineDeadError):
        await complete(engine, request(PROMPT))
    await asyncio.wait_for(engine.stop(), 120)
    assert engine.stats().waiting == 0


async def test_a_read_ends_with_the_engine(base: Path, folders: list[Path]) -> None:
    """Nothing runs then: only the call to the workers can tell."""
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    cold, _ = [(await engine.load_adapter(folder)).digest for folder in folders[:2]]
    backend.add_gate.clear()
    asked = [ask(engine, cold) for _ in range(2)]
    await until(lambda: engine.stats().adapters_on_host == 0)  # the other one is leaving
    backend.die()
    results = await ended(*(task for _, task in asked))
    assert [type(result) for result in results] == [EngineDeadError] * 2


async def test_bad_requests_are_refused_and_take_no_place(base: Path) -> None:
    engine, backend = await started(base)
    request_id, task = ask(engine)
    await settled()
    twin = request(PROMPT)
    object.__setattr__(twin, "request_id", request_id)
    with pytest.raises(InvalidRequestError, match="in use"):
        await complete(engine, twin)
    with pytest.raises(AdapterNotLoadedError):
        await complete(engine, request(PROMPT, "0" * 64))
    assert engine.stats().running == 1
    backend.end([request_id])
    await ended(task)


async def test_stopping_is_final(base: Path) -> None:
    engine, backend = await started(base)
    _, task = ask(engine)
    await settled()
    await engine.stop()
    await engine.stop()
    (done,) = await ended(task)
    assert isinstance(done, Completion)
    assert done.finish_reason == FinishReason.ABORT
    assert backend.stopped == 1
    assert not engine.health().alive


async def test_a_stop_ends_a_load_that_waits_for_room(base: Path, folders: list[Path]) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    digest = (await engine.load_adapter(folders[0])).digest
    _, task = ask(engine, digest)
    await settled()
    load = asyncio.create_task(engine.load_adapter(folders[1]))
    await until(lambda: engine._adapters.needs_room)
    assert not load.done()
    await asyncio.wait_for(engine.stop(), 120)
    await ended(task)
    assert load.done()
    assert backend.most_loras == 1
