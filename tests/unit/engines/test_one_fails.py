"""Faults on the host in the work for one request, at every place where there is such work: it fails
alone, whatever is raised, and those beside it keep their bits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.contracts import Engine, Grammar, GrammarKind
from remix_runtime.engines import completion, grammar
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine, core, sampler
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.engines.embedded.rules import LogitRules
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.engines.text import TextStream
from remix_runtime.errors import RemixError
from tests.engines import Completion, complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.unit.engines.test_engine import adapter

MARK = "the victim's"
GRAMMAR = Grammar(kind=GrammarKind.REGEX, text="[a-z ]{1,40}")
_ODD = 7
"""Log-probabilities that only the victim asks for."""


class Panic(BaseException):
    """As PyO3 raises for a panic in Rust."""


class NthCall:
    """Raises at the n-th call for the victim, which `is_victim` knows by the arguments."""

    def __init__(
        self, function: Callable[..., Any], is_victim: Callable[..., bool], nth: int, error: Any
    ) -> None:
        self.calls = 0

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if is_victim(*args, **kwargs):
                self.calls += 1
                if self.calls == nth:
                    raise error("injected")
            return function(*args, **kwargs)

        self.function = guarded


def of_stream(stream: TextStream, *_: Any, **__: Any) -> bool:
    return any(stop.text == MARK for stop in stream._stops)


def of_new_stream(_self: Any, _speller: Any, _prompt: Any, stop: Any = (), **_: Any) -> bool:
    return MARK in stop


def of_rules(rules: LogitRules, *_: Any) -> bool:
    return MARK in rules._params.stop


def always(*_: Any, **__: Any) -> bool:
    return True


def of_logprobs(_logits: Any, _ids: Any, count: int) -> bool:
    return count == _ODD


COMMON: dict[str, tuple[Any, str, Callable[..., bool], int, dict[str, Any]]] = {
    "text begins": (TextStream, "__init__", of_new_stream, 1, {}),
    "text of the first token": (TextStream, "push", of_stream, 1, {}),
    "text of a later token": (TextStream, "push", of_stream, 5, {}),
    "text ends": (TextStream, "flush", of_stream, 1, {}),
    "grammar goes on": (grammar.Matcher, "take", always, 2, {"grammar": GRAMMAR}),
}
"""What fails, when it counts as the victim's, at which call, and what the victim asks for."""

EMBEDDED = COMMON | {
    "rules are applied": (LogitRules, "apply", of_rules, 3, {"logit_bias": {3: 1.0}}),
    "grammar allows": (grammar.Matcher, "allows", always, 2, {"grammar": GRAMMAR}),
    "grammar masks": (
        grammar.Matcher,
        "mask",
        always,
        2,
        {"grammar": GRAMMAR, "temperature": 1.0, "seed": 1},
    ),
    "logprobs": (sampler, "logprobs_of", of_logprobs, 3, {"logprobs": _ODD}),
    "logprobs of the prompt": (core, "logprobs_of", of_logprobs, 1, {"prompt_logprobs": _ODD}),
    "the draw": (
        sampler,
        "_draw",
        lambda _logits, params, _u: MARK in params.stop,
        3,
        {"temperature": 1.0, "seed": 1},
    ),
    "no token at all": (
        completion.Completion,
        "_event",
        lambda made, *_: not made._max_tokens,
        1,
        {"max_tokens": 0, "prompt_logprobs": 1},
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("one-fails")
    save_tiny_base(root / "base", "llama")
    adapter(root / "adapter", 1)
    return root


@pytest.fixture
async def embedded(folders: Path) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(folders / "base"), kv_cache_bytes=1 << 20, adapter_slots=2, max_running=4
        )
    )
    await engine.start()
    yield engine
    await engine.stop()


async def with_victim(
    engine: Engine, digest: str | None, victim: dict[str, Any]
) -> tuple[Completion | BaseException, list[Completion]]:
    """What becomes of the victim and of those beside it, from before its start to after its end."""
    beside = [
        request([5, 17], digest, max_tokens=16, ignore_eos=True, logprobs=2),
        request([9], None, max_tokens=16, ignore_eos=True, temperature=1.0, seed=3),
    ]
    options = {"max_tokens": 12, "stop": (MARK,)} | victim
    tasks = [asyncio.create_task(complete(engine, item)) for item in beside]
    failing = asyncio.create_task(complete(engine, request([1, 2, 3], digest, **options)))
    (outcome,) = await asyncio.wait_for(asyncio.gather(failing, return_exceptions=True), 120)
    return outcome, [await asyncio.wait_for(task, 120) for task in tasks]


def bits(answers: list[Completion]) -> list[Any]:
    return [(a.token_ids, a.text, a.finish_reason, a.logprobs) for a in answers]


async def fails_alone(
    engine: Engine, digest: str, place: Any, error: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name, is_victim, nth, options = place
    _, expected = await with_victim(engine, digest, {"max_tokens": 1})
    fault = NthCall(getattr(where, name), is_victim, nth, error)
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fault.function)
        outcome, beside = await with_victim(engine, digest, options)
    assert fault.calls >= nth, "the fault was never injected"
    assert isinstance(outcome, RemixError), outcome
    assert bits(beside) == bits(expected)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert [state.requests for state in await engine.adapter_states()] == [0]
    health = engine.health()
    assert health.alive
    assert health.ready
    # It can still be unloaded: nothing pins it.
    await asyncio.wait_for(engine.unload_adapter(digest), 120)


def faults(places: Iterable[str]) -> list[tuple[str, type[BaseException]]]:
    """Text and grammars are followed in Rust, which panics."""
    in_rust = [place for place in places if place.startswith(("text", "grammar"))]
    return [(place, ValueError) for place in places] + [(place, Panic) for place in in_rust]


@pytest.mark.parametrize(("place", "error"), faults(EMBEDDED))
async def test_in_the_embedded_engine(
    embedded: EmbeddedEngine,
    folders: Path,
    place: str,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = (await embedded.load_adapter(folders / "adapter")).digest
    await fails_alone(embedded, digest, EMBEDDED[place], error, monkeypatch)


@pytest.mark.parametrize(("place", "error"), faults(COMMON))
async def test_in_the_fake_engine(
    folders: Path, place: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(FakeConfig(max_running=4))
    await engine.start()
    digest = (await engine.load_adapter(folders / "adapter")).digest
    await fails_alone(engine, digest, COMMON[place], error, monkeypatch)
    await engine.stop()


@pytest.mark.parametrize("error", [ValueError, Panic])
async def test_an_abort_whose_text_fails_is_an_abort(
    embedded: EmbeddedEngine, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = NthCall(TextStream.flush, of_stream, 1, error)
    monkeypatch.setattr(TextStream, "flush", fault.function)
    events = embedded.generate(request([1], max_tokens=200, ignore_eos=True, stop=(MARK,)))
    await anext(events)
    await events.aclose()
    assert (await complete(embedded, request([1], max_tokens=2))).token_ids
    assert fault.calls == 1
    assert embedded.stats().kv_tokens_used == 0


async def test_an_adapter_that_the_device_does_not_take_fails_its_requests(
    embedded: EmbeddedEngine, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = (await embedded.load_adapter(folders / "adapter")).digest
    model = tiny_model("llama")
    bank: AdapterBank = embedded._thread.running_core().bank
    prepared = bank.prepare(random_checkpoint(model, n=4, k=2, r=4, seed=8))
    await embedded._thread.call(lambda: bank.add(prepared))
    table = bank._tables[next(reversed(prepared.layers))]
    take, left = table.set, 1

    def full(*args: Any) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise RuntimeError("no memory")
        take(*args)

    expected = await complete(embedded, request([5], digest, max_tokens=6))
    used = bank.device_bytes_used
    monkeypatch.setattr(table, "set", full)
    core_adapters = embedded._adapters._served
    core_adapters[prepared.digest] = core_adapters[digest]  # known to the face as well
    running = asyncio.create_task(complete(embedded, request([5], digest, max_tokens=6)))
    with pytest.raises(RemixError, match="no memory"):
        await complete(embedded, request([5], prepared.digest))
    assert bits([await running]) == bits([expected])
    assert (bank.device_bytes_used, bank.slots_used) == (used, 1)
    assert embedded.stats().kv_tokens_used == 0
    assert (await complete(embedded, request([5], prepared.digest))).token_ids
    assert bank.slots_used == 2
