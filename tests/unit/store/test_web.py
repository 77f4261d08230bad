"""From a web server: what is fetched again after a cut, and what never is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from server.store import (
    AdapterStore,
    Progress,
    RejectedAdapterError,
    SourceError,
    SourceMissingError,
    SourceUnavailableError,
)
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE, PARITY_FILE, TENSOR_FILE
from tests.unit.store.conftest import contents, leftovers, write_adapter
from tests.unit.store.web import TO_TESTS, Cut, FileWeb


def size(web: FileWeb, name: str = TENSOR_FILE) -> int:
    return len(web.files[f"/adapter/{name}"])


def break_in_tensors(web: FileWeb, *, down: bool) -> Callable[[Progress], None]:
    """Half of the tensor file goes out; the connection breaks once that half is on our disk."""
    half = size(web) // 2
    cut = web.cut = Cut(TENSOR_FILE, half, down=down)
    before = sum(map(len, web.files.values())) - size(web)

    def progress(now: Progress) -> None:
        if now.done >= before + half:
            cut.when.set()

    return progress


def ranges(web: FileWeb, name: str = TENSOR_FILE) -> list[tuple[str | None, int]]:
    return [(served.range, served.sent) for served in web.bodies(name)]


async def test_every_byte_is_fetched_once(store: AdapterStore, web: FileWeb, adapter: Path) -> None:
    stored = await store.import_from(f"{web.url}/adapter/")
    assert contents(stored.folder) == contents(adapter)
    assert stored.source == f"{web.url}/adapter"
    for name in contents(adapter):
        assert ranges(web, name) == [(None, size(web, name))]


async def test_only_an_adapters_names_are_asked_for(store: AdapterStore, web: FileWeb) -> None:
    web.files["/adapter/adapter_model.bin"] = b"pickle"
    await store.import_from(f"{web.url}/adapter")
    assert {served.path.rpartition("/")[2] for served in web.served} == {
        CONFIG_FILE,
        TENSOR_FILE,
        PARITY_FILE,
        "defaults.json",
        "training.json",
        "README.md",
    }


async def test_broken_connection_is_continued_in_the_same_import(
    store: AdapterStore, web: FileWeb, adapter: Path
) -> None:
    half = size(web) // 2
    stored = await store.import_from(
        f"{web.url}/adapter", progress=break_in_tensors(web, down=False)
    )
    assert contents(stored.folder) == contents(adapter)
    assert ranges(web) == [(None, half), (f"bytes={half}-", size(web) - half)]


async def test_next_import_fetches_only_what_is_missing(
    store: AdapterStore, root: Path, web: FileWeb, adapter: Path
) -> None:
    half = size(web) // 2
    source = f"{web.url}/adapter"
    with pytest.raises(SourceUnavailableError, match="503"):
        await store.import_from(source, progress=break_in_tensors(web, down=True))
    assert store.digests() == []
    assert len(leftovers(root)) == 1
    store.close()

    web.down = False
    restarted = AdapterStore(root, policy=TO_TESTS)
    seen: list[Progress] = []
    stored = await restarted.import_from(source, progress=seen.append)
    assert contents(stored.folder) == contents(adapter)
    assert ranges(web) == [(None, half), (f"bytes={half}-", size(web) - half)]
    for name in (CONFIG_FILE, PARITY_FILE, "README.md"):
        assert ranges(web, name) == [(None, size(web, name))]
    assert min(progress.done for progress in seen[3:]) >= half
    assert leftovers(root) == []
    restarted.close()


async def test_source_that_changed_meanwhile_is_fetched_whole(
    store: AdapterStore, root: Path, web: FileWeb, tmp_path: Path
) -> None:
    source = f"{web.url}/adapter"
    with pytest.raises(SourceUnavailableError):
        await store.import_from(source, progress=break_in_tensors(web, down=True))
    web.down = False
    digest = write_adapter(tmp_path / "new", seed=1)
    web.files = {f"/adapter/{name}": d for name, d in contents(tmp_path / "new").items()}
    web.served.clear()
    stored = await store.import_from(source)
    assert stored.digest == digest
    assert ranges(web) == [(None, size(web))]
    assert leftovers(root) == []  # what came of the old version is gone too


async def test_source_that_changes_during_the_download_is_never_mixed(
    store: AdapterStore, root: Path, web: FileWeb, tmp_path: Path
) -> None:
    digest = write_adapter(tmp_path / "new", seed=1)
    new = {f"/adapter/{name}": data for name, data in contents(tmp_path / "new").items()}
    break_now = break_in_tensors(web, down=False)

    def progress(now: Progress) -> None:
        if web.cut is not None and not web.cut.when.is_set():
            break_now(now)
            if web.cut is not None and web.cut.when.is_set():
                web.files = new

    stored = await store.import_from(f"{web.url}/adapter", progress=progress)
    assert stored.digest == digest
    assert contents(stored.folder) == contents(tmp_path / "new")
    assert store.digests() == [digest]
    assert leftovers(root) == []


@pytest.mark.parametrize("weakness", ["no etag", "weak etag"])
async def test_without_a_proof_of_equal_bytes_nothing_is_continued(
    store: AdapterStore, root: Path, web: FileWeb, adapter: Path, weakness: str
) -> None:
    web.etag = "" if weakness == "no etag" else 'W/"{}"'
    source = f"{web.url}/adapter"
    with pytest.raises(SourceUnavailableError):
        await store.import_from(source, progress=break_in_tensors(web, down=False))
    assert leftovers(root) == []
    web.served.clear()
    stored = await store.import_from(source)
    assert contents(stored.folder) == contents(adapter)
    assert ranges(web) == [(None, size(web))]


async def test_server_without_ranges_is_read_from_the_start(
    store: AdapterStore, web: FileWeb, adapter: Path
) -> None:
    web.ranges = False
    half = size(web) // 2
    stored = await store.import_from(
        f"{web.url}/adapter", progress=break_in_tensors(web, down=False)
    )
    assert contents(stored.folder) == contents(adapter)
    first, refused, whole = web.bodies(TENSOR_FILE)
    assert (first.sent, refused.range, whole.range) == (half, f"bytes={half}-", None)


async def test_two_imports_of_one_source_at_once(
    store: AdapterStore, root: Path, web: FileWeb, adapter: Path
) -> None:
    """The second one finds the first one's folder owned, and reads on its own."""
    source = f"{web.url}/adapter"
    cut = web.cut = Cut(TENSOR_FILE, 1)  # holds the first one until the second one is done
    running = asyncio.ensure_future(store.import_from(source))
    assert await asyncio.to_thread(cut.reached.wait, 20)
    web.cut = None
    second = await store.import_from(source)
    cut.when.set()
    assert (await running).digest == second.digest
    assert contents(second.folder) == contents(adapter)
    assert leftovers(root) == []


async def test_missing_folder_and_dead_server(store: AdapterStore, web: FileWeb) -> None:
    with pytest.raises(SourceMissingError, match=r"adapter_config\.json is missing"):
        await store.import_from(f"{web.url}/nothing")
    web.down = True
    with pytest.raises(SourceUnavailableError, match="503"):
        await store.import_from(f"{web.url}/adapter")
    with pytest.raises(SourceUnavailableError, match="Connection refused"):
        await store.import_from("http://127.0.0.1:9/adapter")


async def test_oversized_file_is_refused_by_its_header(
    store: AdapterStore, root: Path, web: FileWeb
) -> None:
    web.files["/adapter/README.md"] = bytes((4 << 20) + 1)
    with pytest.raises(SourceError, match=r"README\.md: found 4194305 bytes"):
        await store.import_from(f"{web.url}/adapter")
    assert [served for served in web.served if served.sent] == []
    assert leftovers(root) == []


async def test_file_that_fails_validation_goes_to_quarantine(
    store: AdapterStore, root: Path, web: FileWeb
) -> None:
    web.files[f"/adapter/{TENSOR_FILE}"] = b"<html>please log in</html>"
    with pytest.raises(RejectedAdapterError, match=TENSOR_FILE):
        await store.import_from(f"{web.url}/adapter")
    assert [entry.source for entry in store.quarantined()] == [f"{web.url}/adapter"]
    assert leftovers(root) == []


async def test_cancelled_import_has_ended_and_can_be_continued(
    store: AdapterStore, web: FileWeb, adapter: Path
) -> None:
    source, half = f"{web.url}/adapter", size(web) // 2
    task: asyncio.Future[object]
    break_now = break_in_tensors(web, down=False)

    def progress(now: Progress) -> None:
        cut = web.cut
        if cut is not None and not cut.when.is_set():
            break_now(now)
            if cut.when.is_set():
                task.cancel()

    task = asyncio.ensure_future(store.import_from(source, progress=progress))
    with pytest.raises(asyncio.CancelledError):
        await task
    web.served.clear()
    stored = await store.import_from(source)
    assert contents(stored.folder) == contents(adapter)
    assert sum(sent for _, sent in ranges(web)) <= size(web) - half


async def test_closed_store_ends_its_imports(store: AdapterStore, root: Path, web: FileWeb) -> None:
    break_now = break_in_tensors(web, down=False)

    def progress(now: Progress) -> None:
        if web.cut is not None and not web.cut.when.is_set():
            break_now(now)
            if web.cut is None or web.cut.when.is_set():
                store.close()

    with pytest.raises(SourceUnavailableError, match="stopped"):
        await store.import_from(f"{web.url}/adapter", progress=progress)
    assert len(leftovers(root)) == 1
