"""Sixty-four adapters over eight slots and host memory for a dozen, under random traffic."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.contracts import FinishReason, TokenEvent
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.errors import AdapterNotLoadedError, AdapterUnavailableError
from tests.engines import complete, request
from tests.models import random_checkpoint, save_tiny_base, tiny_model

ADAPTERS, SLOTS = 64, 8
PROMPT = [5, 17, 99, 3, 42]


def check_budgets(bank: AdapterBank) -> None:
    """What is there, added up from the copies themselves, and not from the bank's counters."""
    entries = bank._entries
    host = sum(e.num_bytes for e in entries.values() if e.adapter is not None or e.reserved)
    copies = [e.adapter for e in entries.values() if e.adapter is not None]
    assert sum(w.num_bytes for copy in copies for w in copy.layers.values()) <= host
    assert host == bank.host_bytes_used <= bank.host_bytes
    device = sum(entries[digest].num_bytes for digest in bank.residents)
    assert device == bank.device_bytes_used <= bank._slots.num_bytes
    assert len(bank.residents) <= SLOTS
    assert all(entries[digest].adapter is not None for digest in bank.residents)


class Watched:
    """The engine, its budgets checked around every step and every command of its thread."""

    def __init__(self, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine = engine
        self.checks = 0
        core = engine._thread.running_core()
        for owner, name in (
            (core, "step"),
            (core, "finish_read"),
            (core, "next_read"),
            (core.bank, "add"),
            (core.bank, "remove"),
            (core.bank, "pin_slot"),
        ):
            monkeypatch.setattr(owner, name, self._checking(core.bank, getattr(owner, name)))

    def _checking(self, bank: AdapterBank, method: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **options: Any) -> Any:
            result = method(*args, **options)
            check_budgets(bank)
            self.checks += 1
            return result

        return checked


class Traffic:
    """Requests, loads, unloads and lost folders at random, each one's outcome checked."""

    def __init__(self, engine: EmbeddedEngine, folders: list[Path], digests: list[str]) -> None:
        self.engine = engine
        self.folders = folders
        self.digests = digests
        self.alone: list[list[int]] = []
        self.lost: set[int] = set()
        """Whose folder was away at some time since: a request may fail."""
        self.unloaded: set[int] = set()
        self.failures = 0

    async def request(self, rng: random.Random) -> None:
        i = rng.choice([None, *range(ADAPTERS), *range(6)])  # six hot ones
        tenant = rng.choice(["a", "a", "a", "b", "c"])
        if i is None:
            assert (await complete(self.engine, request(PROMPT, tenant=tenant))).token_ids
            return
        item = request(PROMPT, self.digests[i], tenant=tenant, ignore_eos=True)
        try:
            if rng.random() < 0.15:
                await self._leave(item.request_id, self.engine.generate(item), rng)
                return
            tokens = (await complete(self.engine, item)).token_ids
            assert tokens == self.alone[i]
        except AdapterUnavailableError:
            assert i in self.lost
            self.failures += 1
        except AdapterNotLoadedError:
            assert i in self.unloaded

    async def _leave(
        self, request_id: str, events: AsyncIterator[TokenEvent], rng: random.Random
    ) -> None:
        if rng.random() < 0.5:
            running = asyncio.create_task(anext(events))
            await asyncio.sleep(0)
            await self.engine.abort(request_id)
            with suppress(StopAsyncIteration):
                await running
        else:
            await anext(events)
        await events.aclose()  # type: ignore[attr-defined]

    async def reload(self, rng: random.Random) -> None:
        i = rng.randrange(ADAPTERS)
        if i in self.unloaded or i in self.lost:
            return
        self.unloaded.add(i)
        await self.engine.unload_adapter(self.digests[i])
        assert (await self.engine.load_adapter(self.folders[i])).digest == self.digests[i]
        self.unloaded.discard(i)

    async def lose(self, rng: random.Random) -> None:
        i = rng.randrange(ADAPTERS)
        if i in self.lost or i in self.unloaded:
            return
        self.lost.add(i)
        away = self.folders[i].rename(self.folders[i].with_suffix(".away"))
        try:
            await complete(self.engine, request(PROMPT, self.digests[i]))
        except AdapterUnavailableError:
            self.failures += 1
        away.rename(self.folders[i])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of several sizes; every fourth has a parity file."""
    root, model = tmp_path_factory.mktemp("adapters"), tiny_model("llama")
    for seed in range(ADAPTERS):
        checkpoint = random_checkpoint(model, n=(2, 4)[seed % 2], r=(2, 4, 8)[seed % 3], seed=seed)
        parity = None
        if seed % 4 == 0:
            again = tiny_model("llama")
            parity = record_parity(again, attach_checkpoint(again, checkpoint), [PROMPT, [1]])
        write_checkpoint(
            root / str(seed), checkpoint.config, checkpoint.layers, readme="x", parity=parity
        )
    return [root / str(seed) for seed in range(ADAPTERS)]


async def test_budgets_and_answers_hold_whatever_happens(
    tmp_path: Path, folders: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(save_tiny_base(tmp_path / "base", "llama")),
            kv_cache_bytes=1 << 20,
            max_running=16,
            max_waiting=200,
            max_tokens_per_step=32,
            adapter_slots=SLOTS,
            adapter_bytes=700_000,  # tighter than the slots where large ones come together
            host_adapter_bytes=1_300_000,  # a dozen of mean size
        )
    )
    await engine.start()
    watched = Watched(engine, monkeypatch)
    digests = [(await engine.load_adapter(folder)).digest for folder in folders]
    traffic = Traffic(engine, folders, digests)
    for digest in digests:
        done = await complete(engine, request(PROMPT, digest, ignore_eos=True))
        traffic.alone.append(done.token_ids)

    async def client(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(15):
            action = rng.choices([traffic.request, traffic.reload, traffic.lose], [20, 2, 1])[0]
            await action(rng)

    await asyncio.wait_for(asyncio.gather(*map(client, range(30))), 120)
    stats = engine.stats()
    assert watched.checks > 1000
    assert traffic.failures > 0
    assert stats.adapter_reads > 2 * ADAPTERS
    assert stats.adapter_slot_fills > ADAPTERS
    assert (stats.running, stats.waiting, stats.kv_tokens_used) == (0, 0, 0)
    assert stats.adapters_loaded == ADAPTERS
    # Nothing that went wrong stays: all are served again, in one crowd.
    crowd = await asyncio.gather(
        *(complete(engine, request(PROMPT, d, ignore_eos=True)) for d in digests)
    )
    assert [done.token_ids for done in crowd] == traffic.alone
    assert {done.finish_reason for done in crowd} == {FinishReason.LENGTH}
    await asyncio.gather(*map(engine.unload_adapter, digests))
    stats = engine.stats()
    assert (stats.host_adapter_bytes_used, stats.device_adapter_bytes_used) == (0, 0)
    assert engine.health().ready
    await engine.stop()
