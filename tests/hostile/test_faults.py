"""A hundred thousand requests with random faults: the client cuts at any byte, the engine fails,
the database goes away, the disk is full, files of adapters are damaged, the clock jumps. Each
request has one outcome, and in the end all books agree. Leaks and worse are made on purpose, and
must be found."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.engines.text import TextStream
from remix_runtime.fairness.shares import Shares
from server.api.event_stream import EventStream
from server.api.writer import ChoicesWriter
from server.http import request as request_module
from server.live.adapters import LiveAdapters
from server.live.buckets import Bucket
from server.live.quotas import Admission
from server.metrics import Metrics
from tests.hostile.faults.served import serving
from tests.hostile.faults.trial import Trial
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.unit.store.conftest import write_adapter

FAULTS = int(os.environ.get("REMIX_HOSTILE_FAULTS", "100000"))
"""Requests of both engines together; a tenth goes to the embedded one."""
SEED = int(os.environ.get("REMIX_HOSTILE_SEED", secrets.randbelow(1 << 30)))

pytestmark = pytest.mark.timeout(24 * 3600)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What thousands of failures are told with is kept in memory otherwise."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@asynccontextmanager
async def fake(root: Path, total: int) -> AsyncIterator[Trial]:
    config = FakeConfig(max_running=6, max_waiting=10, host_adapters=2)
    async with serving(root, FakeEngine(config), write_adapter) as served:
        yield Trial(served, seed=SEED, total=total)


@asynccontextmanager
async def embedded(root: Path, total: int) -> AsyncIterator[Trial]:
    """With room for half of the adapters on the host, and for fewer on the device."""
    model = tiny_model("llama")

    def write(path: Path, seed: int) -> None:
        made = random_checkpoint(model, seed=seed)
        write_checkpoint(path, made.config, made.layers, readme="")

    bank = AdapterBank({}, num_slots=1, device_bytes=1, host_bytes=1)
    size = bank.prepare(random_checkpoint(model)).num_bytes
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(save_tiny_base(root / "base", "llama")),
            max_running=6,
            max_waiting=10,
            adapter_slots=2,
            kv_cache_bytes=1 << 20,
            host_adapter_bytes=3 * size,
            threads=1,
        )
    )
    async with serving(root, engine, write) as served:
        yield Trial(served, seed=SEED, total=total)


ENGINES = {"fake": (fake, FAULTS * 9 // 10), "embedded": (embedded, FAULTS // 10)}


@pytest.mark.parametrize("engine", ENGINES)
async def test_every_request_has_one_outcome_and_the_books_agree(
    engine: str, tmp_path: Path
) -> None:
    make, total = ENGINES[engine]
    async with make(tmp_path, total) as trial:
        found = await trial.run()
        print(f"\n{engine}, seed {SEED}: {dict(trial.judge.outcomes.most_common())}")
        print(*found, sep="\n")
    assert found == [], f"REMIX_HOSTILE_SEED={SEED}"


def once(make: Callable[[Any], Any], nth: int = 20) -> Callable[[Any], Any]:
    """A method that is replaced at its n-th call alone."""

    def replaced(method: Any) -> Any:
        wrong, calls = make(method), 0

        def called(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            return (wrong if calls == nth else method)(*args, **kwargs)

        return called

    return replaced


def nothing(_: Any) -> Any:
    return lambda *_args, **_kwargs: None


def two_ends(method: Any) -> Any:
    async def end(stream: EventStream) -> None:
        await stream.write_bytes(b"data: [DONE]\n\n")
        await method(stream)

    return end


WRONGS: dict[str, tuple[Any, Any, str, Callable[[Any], Any]]] = {
    "reservations": (fake, Bucket, "close", once(nothing)),
    "places": (fake, Admission, "__exit__", once(nothing)),
    "pins": (fake, LiveAdapters, "unpin", once(nothing)),
    "held": (fake, Shares, "give_back", once(nothing)),
    "counters": (fake, Metrics, "count_request", once(nothing)),
    "quota": (fake, Admission, "settle", once(lambda m: lambda a, used: m(a, used + 5000))),
    "lost": (fake, ChoicesWriter, "closing", once(lambda _: lambda *_: ())),
    "doubled": (fake, EventStream, "end", two_ends),
    "another's": (fake, request_module, "_request_id", once(lambda _: lambda _: "r-1", 60)),
    "wrong bits": (
        fake,
        TextStream,
        "push",
        once(lambda method: lambda *args: method(*args) + "!", 3000),
    ),
    "pages": (
        embedded,
        PagePool,
        "give_back",
        once(lambda method: lambda pool, pages, keys: method(pool, pages[1:], keys[1:])),
    ),
    "slots": (embedded, AdapterBank, "unpin_slot", once(nothing)),
}
"""By the kind of finding, what is made wrong, mostly once."""


@pytest.mark.parametrize("kind", WRONGS)
async def test_what_is_made_wrong_is_found(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, owner, name, wrong = WRONGS[kind]
    monkeypatch.setattr(owner, name, wrong(getattr(owner, name)))
    async with make(tmp_path, 100) as trial:
        trial.served.books.patience = 3
        found = await trial.run()
    kinds = {finding.partition(":")[0] for finding in found}
    assert kind in kinds, found
