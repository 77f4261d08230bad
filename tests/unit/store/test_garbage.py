"""What the collector and the sweep at start take away, and what they never touch."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import time
from pathlib import Path

import pytest

from remix_runtime.errors import CheckpointError
from server.store import AdapterStore, StoreFullError, UnknownDigestError
from server.store.incoming import Incoming
from server.store.sources import SourceFile
from tests.unit.store.conftest import contents, leftovers, write_adapter

HOUR = 3600.0


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture
async def digests(store: AdapterStore, tmp_path: Path) -> list[str]:
    """Three adapters, two hours old."""
    found = []
    for seed in range(3):
        write_adapter(tmp_path / f"seed{seed}", seed)
        stored = await store.import_from(str(tmp_path / f"seed{seed}"))
        age(stored.folder, 2 * HOUR)
        found.append(stored.digest)
    return found


async def test_only_old_adapters_that_nobody_keeps_go(
    store: AdapterStore, root: Path, digests: list[str], tmp_path: Path
) -> None:
    kept, fresh, old = digests
    age(root / "adapters" / fresh, HOUR / 2)
    before = contents(store.folder(kept))
    assert await store.collect_garbage({kept}, min_age_seconds=HOUR) == [old]
    assert store.digests() == sorted([kept, fresh])
    assert contents(store.folder(kept)) == before
    with pytest.raises(UnknownDigestError):
        store.folder(old)
    assert leftovers(root) == []
    assert await store.collect_garbage(set(digests), min_age_seconds=0) == []
    assert await store.collect_garbage({kept}, min_age_seconds=0) == [fresh]


async def test_a_full_disk_is_told_as_one_and_nothing_goes(
    store: AdapterStore, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _target: Path) -> Path:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(StoreFullError, match="No space left"):
            await store.collect_garbage(set(), min_age_seconds=0)
    assert store.digests() == sorted(digests)
    assert await store.collect_garbage(set(), min_age_seconds=0) == sorted(digests)


async def test_importing_again_makes_an_adapter_fresh(
    store: AdapterStore, digests: list[str], tmp_path: Path
) -> None:
    assert not (await store.import_from(str(tmp_path / "seed0"))).created
    removed = await store.collect_garbage(set(), min_age_seconds=HOUR)
    assert sorted(removed) == sorted(digests[1:])


async def test_imports_and_collections_at_once_never_lose_what_is_kept(
    store: AdapterStore, root: Path, digests: list[str], tmp_path: Path
) -> None:
    other = AdapterStore(root)
    await store.import_from(str(tmp_path / "seed1"))  # young again, before anything is collected
    for _ in range(10):
        results = await asyncio.gather(
            other.collect_garbage({digests[0]}, min_age_seconds=0),
            store.import_from(str(tmp_path / "seed1")),
            store.collect_garbage({digests[0]}, min_age_seconds=HOUR),
            other.import_from(str(tmp_path / "seed1")),
        )
        assert digests[0] not in results[0] + results[2]
        assert digests[1] not in results[2]
        await store.import_from(str(tmp_path / "seed1"))
        assert contents(store.folder(digests[1])) == contents(tmp_path / "seed1")
    assert contents(store.folder(digests[0])) == contents(tmp_path / "seed0")
    assert (leftovers(root), store.quarantined()) == ([], [])
    other.close()


async def test_two_servers_on_one_store_collect_at_once(
    store: AdapterStore, root: Path, digests: list[str]
) -> None:
    """Each has its own look at what is kept; what goes, goes once, and nobody fails."""
    other = AdapterStore(root)
    try:
        kept, *orphans = digests
        for _ in range(4):
            removed = await asyncio.gather(
                *(s.collect_garbage({kept}, min_age_seconds=HOUR) for s in (store, other) * 2)
            )
            assert sorted(itertools.chain(*removed)) == sorted(orphans)
            assert store.digests() == other.digests() == [kept]
            assert leftovers(root) == []
            for seed in (1, 2):
                stored = await other.import_from(str(root.parent / f"seed{seed}"))
                assert stored.created
                age(stored.folder, 2 * HOUR)
    finally:
        other.close()


async def test_what_another_server_repaired_is_not_taken_for_damaged(
    store: AdapterStore, root: Path, digests: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found the damage; the second one comes when the folder is whole again."""
    other = AdapterStore(root)
    (store.folder(digests[0]) / "adapter_config.json").write_text("{")
    look, loop = other._damage, asyncio.get_running_loop()

    def look_and_be_late(folder: Path, is_served: bool) -> CheckpointError | None:
        found = look(folder, is_served)
        repaired = store.import_from(str(root.parent / "seed0"))
        assert asyncio.run_coroutine_threadsafe(repaired, loop).result(60).created
        return found

    monkeypatch.setattr(other, "_damage", look_and_be_late)
    try:
        await other.set_aside(digests[0])
        assert len(store.quarantined()) == 1
        assert await store.set_aside(digests[0]) is None, "it is whole"
    finally:
        other.close()


async def test_collector_leaves_alone_what_is_no_adapter(store: AdapterStore, root: Path) -> None:
    (root / "adapters" / "lost+found").mkdir()
    assert await store.collect_garbage(set(), min_age_seconds=0) == []
    assert store.digests() == []
    assert (root / "adapters" / "lost+found").is_dir()


def file(version: str = "1") -> SourceFile:
    return SourceFile(name="README.md", size=3, version=version, resumable=bool(version))


@pytest.mark.parametrize("version", ["1", ""])
async def test_unfinished_imports_of_the_living_stay(
    store: AdapterStore, root: Path, version: str
) -> None:
    with Incoming(root / "incoming").claim("somewhere", [file(version)]) as files:
        (files / "README.md").write_text("abc")
        for path in (*files.parent.rglob("*"), files.parent):
            age(path, 100 * HOUR)
        AdapterStore(root).close()
        await store.collect_garbage(set(), min_age_seconds=0)
        assert (files / "README.md").read_text() == "abc"
    assert leftovers(root) == []


def abandon(root: Path, name: str) -> Path:
    """What a killed import leaves."""
    folder = root / "incoming" / name
    (folder / "files").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "files" / "README.md").write_text("abc")
    return folder


async def test_unfinished_imports_of_the_dead_go(store: AdapterStore, root: Path) -> None:
    abandon(root, "once-1")
    abandon(root, "gone-1")
    (root / "incoming" / "once-2").mkdir()
    partial = abandon(root, "resume-a-b")
    AdapterStore(root).close()  # a start sweeps
    assert leftovers(root) == ["resume-a-b"]
    await store.collect_garbage(set(), min_age_seconds=HOUR)
    assert leftovers(root) == ["resume-a-b"]
    for path in (*partial.rglob("*"), partial):
        age(path, 2 * HOUR)
    await store.collect_garbage(set(), min_age_seconds=HOUR)
    assert leftovers(root) == []
