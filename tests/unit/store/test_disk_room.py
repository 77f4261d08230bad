"""Room on the disk is set aside for each import."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from server.store import (
    AdapterStore,
    StoreFullError,
    disk_room,
)
from server.store import store as store_module
from server.store.sources import Source
from tests.unit.store.conftest import contents, leftovers, write_adapter


async def test_full_disk_is_known_before_anything_is_copied(
    store: AdapterStore, root: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(root)._replace(free=1000)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: free)
    with pytest.raises(StoreFullError, match="found 1000 bytes free"):
        await store.import_from(str(adapter))
    assert leftovers(root) == []


async def test_imports_at_once_do_not_count_on_the_same_room(
    store: AdapterStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One stands still after its first part, with room for one more beside what it is to write,
    but not for two."""
    one, two = tmp_path / "one", tmp_path / "two"
    write_adapter(one, seed=1)
    write_adapter(two, seed=2)
    size = sum(len(data) for data in contents(one).values())
    free = shutil.disk_usage(root)._replace(free=disk_room.FREE_BYTES + size * 3 // 2)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: free)
    begun, go_on = threading.Event(), threading.Event()
    original = store_module.download

    def slow_download(source: Source, *arguments: Any, **options: Any) -> None:
        if source.address == str(one):
            begun.set()
            assert go_on.wait(60)
        original(source, *arguments, **options)

    monkeypatch.setattr(store_module, "download", slow_download)
    first = asyncio.create_task(store.import_from(str(one)))
    assert await asyncio.to_thread(begun.wait, 60)
    with pytest.raises(StoreFullError, match=f"{size} for others that are"):
        await store.import_from(str(two))
    go_on.set()
    await first
    # What is written is no more to come, and what failed has left no claim.
    assert (await store.import_from(str(two))).created


def test_what_is_on_the_disk_is_set_aside_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = shutil.disk_usage(tmp_path)._replace(free=disk_room.FREE_BYTES + 100)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda path: left)
    rooms = disk_room.DiskRoom(tmp_path)
    with rooms.of(80) as wrote:
        with pytest.raises(StoreFullError), rooms.of(40):
            pass
        wrote(60)  # of a disk whose free bytes are told as they were
        with rooms.of(80):
            pass
    with pytest.raises(KeyError), rooms.of(100):
        raise KeyError
    with rooms.of(100):
        pass
