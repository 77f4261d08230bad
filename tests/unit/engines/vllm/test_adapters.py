"""What the workers are told to hold, without vLLM: the engine's adapters on a stub."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from remix_runtime.engine_state import AdapterTier
from remix_runtime.engines.vllm import adapters as adapters_module
from remix_runtime.engines.vllm.engine import VllmEngine
from remix_runtime.errors import (
    AdapterUnavailableError,
    CapacityError,
    CheckpointError,
    ParityError,
)
from tests.engines import complete, request
from tests.unit.engines.vllm.stub import StubBackend, settled, started, until
from tests.unit.engines.vllm.test_engine import PROMPT, ask, ended


async def loaded(engine: VllmEngine, folders: Sequence[Path]) -> list[str]:
    return [(await engine.load_adapter(folder)).digest for folder in folders]


async def run(engine: VllmEngine, backend: StubBackend, digest: str) -> None:
    """One request from its arrival to its end."""
    request_id, task = ask(engine, digest)
    while request_id not in backend.running:
        assert not task.done(), await task
        await asyncio.sleep(0.005)
    backend.end([request_id])
    await task


async def test_a_load_is_idempotent_and_keeps_no_more_than_the_host_holds(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=2)
    first = await engine.load_adapter(folders[0])
    both = await asyncio.gather(*(engine.load_adapter(folders[0]) for _ in range(2)))
    assert both == [first] * 2
    assert backend.adds == [first.digest]
    digests = [first.digest, *await loaded(engine, folders[1:])]
    assert backend.most_loras == 2
    assert list(backend.loras.values()) == digests[2:]
    assert len(set(backend.loras)) == 2, "nothing is reloaded in place"
    assert engine.stats().adapters_loaded == 4
    assert engine.stats().adapters_on_host == 2


async def test_the_one_pinned_longest_ago_leaves(base: Path, folders: list[Path]) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=2)
    a, b = await loaded(engine, folders[:2])
    await run(engine, backend, a)
    (c,) = await loaded(engine, folders[2:3])
    assert set(backend.loras.values()) == {a, c}
    tiers = {state.digest: state.tier for state in await engine.adapter_states()}
    assert tiers == {a: AdapterTier.HOST, b: AdapterTier.DISK, c: AdapterTier.DEVICE}
    await run(engine, backend, b)
    assert set(backend.loras.values()) == {b, c}
    assert engine.stats().adapter_reads == 4


@pytest.mark.parametrize("refusal", [CheckpointError("too late"), RuntimeError("odd")])
async def test_a_load_that_a_worker_refuses_leaves_nothing(
    base: Path, folders: list[Path], refusal: Exception
) -> None:
    engine, backend = await started(base)
    backend.refusal = refusal
    with pytest.raises(type(refusal)):
        await engine.load_adapter(folders[0])
    assert (await engine.adapter_states(), engine.stats().adapters_loaded) == ([], 0)
    (digest,) = await loaded(engine, folders[:1])
    await run(engine, backend, digest)


async def test_what_no_worker_could_hold_is_refused_before_one_hears_of_it(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base, adapter_rows=1)
    with pytest.raises(CapacityError, match="2 experts of rank 2, 4 together"):
        await engine.load_adapter(folders[0])
    assert backend.adds == []


async def test_a_load_whose_parity_differs_leaves_nothing(
    base: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = await started(base)

    async def differs(*args: object) -> None:
        assert engine.stats().adapters_on_host == 1
        raise ParityError("found other routes")

    monkeypatch.setattr(engine._adapters, "_replay", differs)
    with pytest.raises(ParityError):
        await engine.load_adapter(folders[0])
    assert (backend.loras, engine.stats().adapters_loaded) == ({}, 0)


@pytest.mark.parametrize("damage", ["gone", "changed", "a worker fails"])
async def test_an_adapter_that_cannot_be_read_again_fails_its_own_requests_once(
    base: Path, folders: list[Path], tmp_path: Path, damage: str
) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    copy = tmp_path / "copy"
    shutil.copytree(folders[0], copy)
    lost, other = await loaded(engine, [copy, folders[1]])
    if damage == "a worker fails":
        backend.refusal = RuntimeError("out of memory")
    else:
        shutil.rmtree(copy)
    if damage == "changed":
        shutil.copytree(folders[2], copy)
    failing = [ask(engine, lost)[1] for _ in range(2)]
    request_id, going = ask(engine, other)
    await settled()
    backend.end([request_id])
    results = await ended(*failing)
    assert [type(result) for result in results] == [AdapterUnavailableError] * 2
    await ended(going)
    assert backend.adds.count(lost) <= 2, "it is not tried again and again"
    assert engine.health().ready
    # Loaded from a good folder, it is served again.
    await engine.load_adapter(folders[0])
    await run(engine, backend, lost)


async def test_an_unload_waits_for_requests_and_one_loaded_again_stays(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base)
    (digest,) = await loaded(engine, folders[:1])
    request_id, task = ask(engine, digest)
    await settled()
    unload = asyncio.create_task(engine.unload_adapter(digest))
    await settled()
    assert await engine.adapter_states() == []
    assert not unload.done()
    await loaded(engine, folders[:1])
    backend.end([request_id])
    await ended(task)
    await asyncio.wait_for(unload, 120)
    assert list(backend.loras.values()) == [digest]
    await asyncio.wait_for(engine.unload_adapter(digest), 120)
    await engine.unload_adapter(digest)
    assert backend.loras == {}


async def test_an_unload_of_one_loaded_and_used_again_waits_again(
    base: Path, folders: list[Path]
) -> None:
    """While the unload waits for its turn: it had seen the last of the old requests."""
    engine, backend = await started(base)
    (digest,) = await loaded(engine, folders[:1])
    request_id, task = ask(engine, digest)
    await settled()
    first = asyncio.create_task(engine.unload_adapter(digest))
    await settled()
    async with engine._adapters._turn:
        backend.end([request_id])
        await ended(task)
        await settled()
        # What a load does that has its turn before the unload.
        engine._adapters._served[digest].is_open = True
        request_id, task = ask(engine, digest)
        await settled()
        second = asyncio.create_task(engine.unload_adapter(digest))
        await settled()
    await settled()
    assert not first.done()
    assert not second.done()
    assert list(backend.loras.values()) == [digest]
    backend.end([request_id])
    await asyncio.wait_for(asyncio.gather(first, second, task), 120)
    assert backend.loras == {}


async def test_requests_held_back_for_a_load_go_on_once_it_has_room(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base, adapter_slots=2, host_adapters=2)
    a, b = await loaded(engine, folders[:2])
    (first, one), (second, two) = ask(engine, a), ask(engine, b)
    await settled()
    load = asyncio.create_task(engine.load_adapter(folders[2]))
    await until(lambda: engine._adapters.needs_room)
    late, three = ask(engine, a)
    await settled()
    assert late not in backend.started, "or the load might wait for ever"
    backend.add_gate.clear()  # what follows takes as long as it likes
    backend.end([second])
    await ended(two)
    await settled()
    assert late in backend.started
    assert not load.done()
    backend.add_gate.set()
    await asyncio.wait_for(load, 120)
    backend.end([first, late])
    await ended(one, three)
    assert backend.most_loras == 2


async def test_a_replay_gets_a_slot_among_requests_that_never_cease(
    base: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, backend = await started(base, adapter_slots=1)
    (digest,) = await loaded(engine, folders[:1])
    request_id, one = ask(engine, digest)
    await settled()
    replayed = asyncio.Event()

    async def replay(*args: object) -> None:
        await replayed.wait()

    monkeypatch.setattr(engine._adapters, "_replay", replay)
    load = asyncio.create_task(engine.load_adapter(folders[1]))
    await until(lambda: engine.stats().adapters_on_host == 2)
    late, two = ask(engine, digest)
    backend.end([request_id])
    await ended(one)
    await settled()
    assert late not in backend.started
    replayed.set()
    await asyncio.wait_for(load, 120)
    await settled()
    backend.end([late])
    await ended(two)


async def test_an_adapter_unloaded_while_its_read_is_queued(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base, adapter_slots=1, host_adapters=1)
    cold, _ = await loaded(engine, folders[:2])
    backend.add_gate.clear()
    load = asyncio.create_task(engine.load_adapter(folders[2]))
    await until(lambda: engine.stats().adapters_on_host == 0)
    request_id, task = ask(engine, cold)
    await settled()
    await engine.abort(request_id)
    await ended(task)
    unload = asyncio.create_task(engine.unload_adapter(cold))
    await settled()
    backend.add_gate.set()
    await asyncio.wait_for(asyncio.gather(load, unload), 120)
    assert cold not in {state.digest for state in await engine.adapter_states()}
    await loaded(engine, folders[:1])
    await run(engine, backend, cold)


async def test_a_caller_that_goes_away_leaves_a_whole_adapter(
    base: Path, folders: list[Path]
) -> None:
    engine, backend = await started(base)
    backend.add_gate.clear()
    load = asyncio.create_task(engine.load_adapter(folders[0]))
    await until(lambda: len(backend.adds) == 1)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    backend.add_gate.set()
    digest = backend.adds[0]
    await until(lambda: digest in engine._adapters)
    await run(engine, backend, digest)


async def test_an_odd_error_of_a_read_ends_its_requests(
    base: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = await started(base, adapter_slots=1, host_adapters=1)
    cold, _other = await loaded(engine, folders[:2])

    def odd(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(adapters_module, "read_checkpoint", odd)
    with pytest.raises(AdapterUnavailableError):
        await asyncio.wait_for(complete(engine, request(PROMPT, cold)), 120)
