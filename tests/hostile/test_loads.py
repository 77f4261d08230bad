"""Adapters that come and go thousands of times: from many threads the counts agree at the end, and
nothing stays of them. A leak is made on purpose, and must be caught."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded import adapters as adapters_module
from remix_runtime.errors import AdapterNotLoadedError
from server.store import AdapterStore
from tests.engines import complete, request
from tests.hostile.leaks import leaks
from tests.models import random_checkpoint, save_tiny_base, tiny_model

THREADS = 32
LOADS = int(os.environ.get("REMIX_HOSTILE_LOADS", "1024"))
"""And as many unloads, of each thread."""
ADAPTERS = 8

pytestmark = pytest.mark.timeout(24 * 3600)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The base, and adapters."""
    root = tmp_path_factory.mktemp("loads")
    base = save_tiny_base(root / "base", "llama-32")
    model = tiny_model("llama-32")
    for seed in range(ADAPTERS):
        made = random_checkpoint(model, seed=seed)
        write_checkpoint(root / f"{seed}", made.config, made.layers, readme="")
    return [base, *(root / f"{seed}" for seed in range(ADAPTERS))]


@pytest.fixture
async def engine(folders: list[Path]) -> AsyncIterator[EmbeddedEngine]:
    engine = EmbeddedEngine(
        EmbeddedConfig(model=str(folders[0]), adapter_slots=4, kv_cache_bytes=1 << 24)
    )
    await engine.start()
    yield engine
    await engine.stop()


async def held(engine: EmbeddedEngine) -> tuple[int, int, int]:
    """Adapters that are known, bytes in host memory, and adapters on the device."""
    thread = engine._adapters._thread
    bank = thread.running_core().bank
    states = await engine.adapter_states()
    used = await thread.call(lambda: bank.host_bytes_used)
    return len(states), used, sum(state.slot is not None for state in states)


async def test_loads_from_many_threads(engine: EmbeddedEngine, folders: list[Path]) -> None:
    """Each thread loads, sometimes asks, and unloads; others do so with the same adapters."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    digests = {folder: read_checkpoint(folder).digest for folder in folders[1:]}
    loads, unloads, answers, errors = itertools.count(), itertools.count(), [0], list[Exception]()

    def wait(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(LOADS):
                folder = chance.choice(folders[1:])
                info = wait(engine.load_adapter(folder))
                assert info.digest == digests[folder]
                next(loads)
                if chance.random() < 0.02:
                    item = request([1, 2, 3], digests[folder], max_tokens=2)
                    try:
                        assert len(wait(complete(engine, item)).token_ids) == 2
                        answers[0] += 1
                    except AdapterNotLoadedError:  # another thread was faster
                        pass
                wait(engine.unload_adapter(digests[folder]))
                next(unloads)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()

    def join() -> None:
        for thread in threads:
            thread.join()
        loop.call_soon_threadsafe(done.set)

    waiting = threading.Thread(target=join)
    waiting.start()
    await done.wait()
    waiting.join()
    assert errors == []
    assert (next(loads), next(unloads)) == (THREADS * LOADS, THREADS * LOADS)
    assert await held(engine) == (0, 0, 0)
    assert engine._adapters._served == {}
    stats = engine.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    for folder in folders[1:]:  # and it goes on
        info = await engine.load_adapter(folder)
        assert len((await complete(engine, request([1, 2], info.digest))).token_ids) == 8
        await engine.unload_adapter(info.digest)
    assert await held(engine) == (0, 0, 0)


async def again(engine: EmbeddedEngine, folder: Path) -> None:
    info = await engine.load_adapter(folder)
    await engine.unload_adapter(info.digest)


@pytest.mark.parametrize("leak", [None, "objects", "num_bytes"])
async def test_loads_leave_nothing(
    engine: EmbeddedEngine,
    folders: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    leak: str | None,
) -> None:
    """In a thousand, after a thousand. The control keeps an object of each, or a tensor's bytes."""
    kept: list[Any] = []
    read = adapters_module.read_adapter

    def leaking(*args: Any, **kwargs: Any) -> Any:
        result = read(*args, **kwargs)
        if leak == "objects":
            kept.append([])
        elif leak == "num_bytes":
            kept.extend(bytes(weights.b_nOr.numel() * 4) for weights in result[0].layers.values())
        return result

    monkeypatch.setattr(adapters_module, "read_adapter", leaking)
    size = read_checkpoint(folders[1]).num_bytes
    found = await leaks(lambda: again(engine, folders[1]), rounds=LOADS, bytes_each=size // 2)
    assert found == ([] if leak is None else [leak])


@pytest.mark.parametrize("leak", [None, "files"])
async def test_imports_leave_nothing(tmp_path: Path, folders: list[Path], leak: str | None) -> None:
    """Each is examined in a process of its own."""
    store = AdapterStore(tmp_path / "store")
    kept: list[int] = []

    async def work() -> None:
        await store.import_from(str(folders[1]))
        if leak:
            kept.append(os.dup(0))

    size = read_checkpoint(folders[1]).num_bytes
    found = await leaks(work, rounds=max(1, LOADS // 8), bytes_each=size)
    for number in kept:
        os.close(number)
    assert found == ([leak] if leak else [])
    store.close()
