"""The adapters of a replica: brought as bytes, loaded when needed, let go without loss."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.engines.ray.bundle import Bundle, pack
from remix_runtime.engines.ray.kept import KeptAdapters
from remix_runtime.errors import (
    AdapterUnavailableError,
    CheckpointFormatError,
    CheckpointMismatchError,
)
from tests.engines import complete, request


class Replica:
    def __init__(self, root: Path, most: int) -> None:
        self.root = root
        self.engine = FakeEngine(FakeConfig(max_running=8))
        self.kept = KeptAdapters(self.engine, most, lambda chunk: chunk)

    def bundle(self, name: str) -> Bundle:
        folder = self.root / name
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(name))
        return pack(folder, bytes)

    async def load(self, name: str) -> str:
        return (await self.kept.load(self.bundle(name), None, name)).digest

    def folders(self) -> list[Path]:
        return [path for path in self.root.glob("remix-replica-*/*") if path.is_dir()]

    async def settled(self) -> tuple[set[str], set[str]]:
        """What is kept, and what the engine has."""
        await self.kept._tasks.settle()
        return set(self.kept.digests), {s.digest for s in await self.engine.adapter_states()}


@pytest.fixture
async def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Replica(tmp_path, most=2)
    await made.engine.start()
    yield made
    await made.engine.stop()


async def test_the_one_unused_longest_ago_leaves(replica: Replica) -> None:
    a, b = await replica.load("a"), await replica.load("b")
    assert await replica.kept.pin(a)
    replica.kept.unpin(a)
    c = await replica.load("c")
    assert await replica.settled() == ({a, c}, {a, c})
    assert not await replica.kept.pin(b)
    assert len(replica.folders()) == 2


async def test_one_in_use_stays_in_the_engine_until_its_last_request_ends(
    replica: Replica,
) -> None:
    a = await replica.load("a")
    assert await replica.kept.pin(a)
    await complete(replica.engine, request([1, 2, 3], a, max_tokens=4, ignore_eos=True))
    counts = replica.kept.expert_load(a)
    assert sum(sum(each) for each in counts.values()) == 6
    b, c = await replica.load("b"), await replica.load("c")
    assert await replica.settled() == ({b, c}, {a, b, c})
    assert (await complete(replica.engine, request([1], a))).token_ids
    counts = replica.kept.expert_load(a)
    replica.kept.unpin(a)
    assert await replica.settled() == ({b, c}, {b, c})
    # It comes again, and with it what its experts have done.
    await replica.kept.deliver(a, replica.bundle("a"))
    assert await replica.kept.pin(a)
    assert replica.kept.expert_load(a) == counts
    replica.kept.unpin(a)


async def test_one_that_is_wanted_again_before_it_has_left_stays(replica: Replica) -> None:
    a = await replica.load("a")
    assert await replica.kept.pin(a)
    b, c = await replica.load("b"), await replica.load("c")
    assert await replica.kept.pin(a)
    assert await replica.settled() == ({a, c}, {a, c})
    replica.kept.unpin(a)
    replica.kept.unpin(a)
    assert await replica.settled() == ({a, c}, {a, c})
    assert b not in replica.kept


async def test_requests_wait_for_one_delivery(replica: Replica) -> None:
    digest = await replica.load("a")
    await replica.kept.drop(digest)
    assert await replica.settled() == (set(), set())
    number = replica.kept.round_of(digest)

    async def use() -> None:
        while not await replica.kept.pin(digest):
            assert replica.kept.round_of(digest) == number
            await replica.kept.wait(digest)
        await complete(replica.engine, request([1], digest))
        replica.kept.unpin(digest)

    users = [asyncio.create_task(use()) for _ in range(3)]
    await asyncio.sleep(0)
    await replica.kept.deliver(digest, replica.bundle("a"))
    await asyncio.wait_for(asyncio.gather(*users), 30)
    assert replica.engine.stats().adapter_reads == 2


async def test_other_bytes_than_the_digest_says_fail_and_are_asked_for_anew(
    replica: Replica,
) -> None:
    digest = await replica.load("a")
    await replica.kept.drop(digest)
    number = replica.kept.round_of(digest)
    await replica.kept.deliver(digest, replica.bundle("b"))
    with pytest.raises(AdapterUnavailableError) as caught:
        await replica.kept.pin(digest)
    assert caught.value.digest == digest
    assert replica.kept.round_of(digest) != number
    await replica.kept.deliver(digest, replica.bundle("a"))
    assert await replica.kept.pin(digest)
    replica.kept.unpin(digest)


async def test_a_bad_folder_is_refused_by_the_name_that_its_server_gave(replica: Replica) -> None:
    with pytest.raises(CheckpointMismatchError, match=r"^my/folder: found an adapter with"):
        await replica.kept.load(replica.bundle("a"), "0" * 64, "my/folder")
    assert await replica.settled() == (set(), set())
    (replica.root / "empty").mkdir()
    with pytest.raises(CheckpointFormatError, match="adapter_config"):
        pack(replica.root / "empty", bytes)


async def test_bytes_that_do_not_come_are_an_error(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remix_runtime.engines.ray.kept.DELIVERY_SECONDS", 0.01)
    with pytest.raises(AdapterUnavailableError, match="did not come"):
        await replica.kept.wait("0" * 64)


async def test_a_dropped_one_that_another_server_uses_stays_until_then(replica: Replica) -> None:
    a = await replica.load("a")
    assert await replica.kept.pin(a)
    await replica.kept.drop(a)
    assert (await complete(replica.engine, request([1], a))).token_ids
    replica.kept.unpin(a)
    assert await replica.settled() == (set(), set())
    assert replica.kept.expert_load(a) == {}


async def test_a_caller_that_goes_away_leaves_a_whole_adapter(replica: Replica) -> None:
    """A request that is aborted while the engine loads: the replica knows what the engine has."""
    digest = await replica.load("a")
    await replica.kept.drop(digest)
    await replica.kept.deliver(digest, replica.bundle("a"))
    begun, go_on = asyncio.Event(), asyncio.Event()
    load = replica.engine.load_adapter

    async def slow(folder: Path, digest: str | None = None) -> AdapterInfo:
        begun.set()
        await go_on.wait()
        return await load(folder, digest)

    replica.engine.load_adapter = slow  # type: ignore[method-assign]
    pinning = asyncio.create_task(replica.kept.pin(digest))
    await asyncio.wait_for(begun.wait(), 30)
    pinning.cancel()
    await asyncio.wait({pinning})
    go_on.set()
    assert await replica.settled() == ({digest}, {digest})
    await replica.kept.drop(digest)
    assert await replica.settled() == (set(), set())
    assert replica.folders() == []


async def test_bytes_that_nobody_loaded_leave_with_the_adapter(replica: Replica) -> None:
    digest = await replica.load("a")
    await replica.kept.drop(digest)
    await replica.kept.deliver(digest, replica.bundle("a"))
    assert len(replica.folders()) == 1
    await replica.kept.drop(digest)
    assert replica.folders() == []


async def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(replica: Replica) -> None:
    """Ray would tell of any other error as of a lost replica."""

    def full(chunk: object) -> bytes:
        raise OSError(28, "No space left on device")

    replica.kept._get = full
    with pytest.raises(AdapterUnavailableError, match="No space left"):
        await replica.load("a")
    assert replica.folders() == []
