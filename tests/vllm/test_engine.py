"""What only the vLLM engine has: a core that dies apart from us, parity on its workers, the load of
experts. What every engine must do is in `tests/contract`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.contracts import Engine
from remix_runtime.errors import CheckpointError, ConfigError, EngineDeadError, ParityError
from tests.engines import complete, complete_all, request
from tests.models import random_checkpoint, tiny_model
from tests.vllm.conftest import FAMILY, World
from tests.vllm_engines import vllm_engine

pytestmark = pytest.mark.vllm

PROMPT = [5, 17, 99, 3, 42]
PARITY_PROMPTS = [[7, 5, 200], list(range(40))]


@pytest.fixture
async def engine(world: World) -> AsyncIterator[Engine]:
    engine = vllm_engine(world.base, max_running=8, adapter_slots=2, host_adapters=3)
    await engine.start()
    yield engine
    await engine.stop()


def signal_core(number: int) -> None:
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or child.name().startswith("VLLM"):
            os.kill(child.pid, number)


async def test_the_death_of_vllms_core_is_seen_within_two_seconds(
    world: World, engine: Engine
) -> None:
    digest = (await engine.load_adapter(world.remix[0].folder)).digest
    running = [
        asyncio.create_task(
            complete(engine, request(PROMPT, name, max_tokens=200, ignore_eos=True))
        )
        for name in (digest, None)
    ]
    await asyncio.sleep(0.2)
    signal_core(signal.SIGKILL)
    killed = time.monotonic()
    while engine.health().alive:
        assert time.monotonic() - killed < 2
        await asyncio.sleep(0.05)
    assert not engine.health().ready
    results = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), 120)
    assert [type(result) for result in results] == [EngineDeadError] * 2
    with pytest.raises(EngineDeadError):
        await complete(engine, request(PROMPT))
    with pytest.raises(EngineDeadError):
        await engine.load_adapter(world.remix[1].folder)


async def test_a_load_ends_when_the_core_dies_in_the_middle_of_it(
    world: World, engine: Engine
) -> None:
    """vLLM leaves the call open."""
    signal_core(signal.SIGSTOP)
    load = asyncio.create_task(engine.load_adapter(world.remix[0].folder))
    await asyncio.sleep(2)
    assert not load.done()
    signal_core(signal.SIGKILL)
    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(load, 120)
    await asyncio.wait_for(engine.stop(), 120)


async def test_what_a_worker_refuses_is_told_in_its_words_and_others_go_on(
    world: World, engine: Engine
) -> None:
    """A folder that changes after it was checked: the worker looks at the digest, too."""
    backend = engine._backend  # type: ignore[attr-defined]
    folder, name = world.remix[0].folder, "0" * 64
    digest = read_checkpoint(folder).digest
    with pytest.raises(CheckpointError) as caught:
        await backend.add_lora(name, 77, folder)
    assert str(caught.value) == (
        f"{folder}: found an adapter with digest {digest}, expected {name}"
    )
    assert (await engine.load_adapter(folder)).digest == digest
    assert (await complete(engine, request(PROMPT, digest))).token_ids


def test_the_words_of_a_worker_are_found_in_what_is_put_around_them() -> None:
    from remix_runtime.engines.vllm.backend import worker_words

    words = "a.json: found 'x',\nexpected y"
    executor = (
        f"Worker failed with error '{words}', please check the stack trace above for the root cause"
    )
    for text in (words, executor, f"Call to add_lora method failed: {words}"):
        assert worker_words(text) == words
    assert worker_words(f"Call to add_lora method failed: {executor}") == words


def with_parity(folder: Path, *, recorded: int, weights: int) -> Path:
    """An adapter with the parity file of that or of another one."""
    model = tiny_model(FAMILY)
    source = random_checkpoint(model, n=4, k=2, r=4, seed=recorded)
    write_checkpoint(folder / "source", source.config, source.layers, readme="random")
    layers = attach_checkpoint(model, read_checkpoint(folder / "source"))
    parity = record_parity(model, layers, PARITY_PROMPTS)
    target = random_checkpoint(tiny_model(FAMILY), n=4, k=2, r=4, seed=weights)
    write_checkpoint(
        folder / "adapter", target.config, target.layers, readme="random", parity=parity
    )
    return folder / "adapter"


async def test_parity_is_replayed_beside_running_requests(
    world: World, engine: Engine, tmp_path: Path
) -> None:
    other = (await engine.load_adapter(world.remix[0].folder)).digest
    items = [request(PROMPT, other, max_tokens=40, ignore_eos=True) for _ in range(3)]
    alone = (await complete(engine, items.pop())).token_ids
    beside = asyncio.create_task(complete_all(engine, items))
    good = await engine.load_adapter(with_parity(tmp_path / "good", recorded=1, weights=1))
    with pytest.raises(ParityError, match=r"found experts|found logit"):
        await engine.load_adapter(with_parity(tmp_path / "bad", recorded=1, weights=2))
    assert [done.token_ids for done in await beside] == [alone] * 2
    assert (await complete(engine, request(PROMPT, good.digest))).token_ids
    assert {state.digest for state in await engine.adapter_states()} == {other, good.digest}


async def test_the_load_of_experts_is_counted_by_adapter_and_module(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remix_runtime.engines.vllm.engine.LOAD_SECONDS", 0.1)
    engine = vllm_engine(world.base)
    await engine.start()
    adapter = world.remix[0]
    info = await engine.load_adapter(adapter.folder)
    await complete(engine, request(PROMPT, info.digest, max_tokens=120, ignore_eos=True))
    for _ in range(200):
        if load := engine.expert_load(info.digest):
            break
        await asyncio.sleep(0.1)
    modules = read_checkpoint(adapter.folder).layers.keys()
    assert load.keys() == modules
    for counts in load.values():
        assert len(counts) == info.num_experts
        # As many as tokens were looked at, each with k experts.
        assert sum(counts) % info.top_k == 0
        assert sum(counts) >= info.top_k
    await engine.stop()


async def test_an_unknown_engine_argument_is_named(world: World) -> None:
    engine = vllm_engine(world.base, engine_args={"no_such_thing": 1})
    with pytest.raises(ConfigError, match="no_such_thing"):
        await engine.start()


async def test_sharded_adapters_are_refused_at_the_start(world: World) -> None:
    engine = vllm_engine(world.base, engine_args={"fully_sharded_loras": True})
    with pytest.raises(ConfigError):
        await engine.start()
