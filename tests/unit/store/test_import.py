"""From a folder on this machine: what gets in, what is refused at the door, what in quarantine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch

from remix_runtime.adapter.checkpoint import describe, read_checkpoint
from server.store import (
    AdapterStore,
    Progress,
    RejectedAdapterError,
    SourceError,
    SourceMissingError,
    UnknownDigestError,
)
from server.store import store as store_module
from server.store.sources import base
from tests.layouts import LAYOUTS
from tests.unit.adapter.checkpoint.adapters import (
    CONFIG_FILE,
    FIRST,
    PARITY_FILE,
    TENSOR_FILE,
    edit_config,
    edit_header,
    edit_tensors,
)
from tests.unit.store.conftest import contents, leftovers, write_adapter


async def test_local_folder_becomes_a_verified_folder(
    store: AdapterStore, root: Path, adapter: Path
) -> None:
    seen: list[Progress] = []
    stored = await store.import_from(str(adapter), progress=seen.append)
    checkpoint = read_checkpoint(adapter)
    assert stored.digest == checkpoint.digest
    assert stored.folder == store.folder(stored.digest) == root / "adapters" / stored.digest
    assert contents(stored.folder) == contents(adapter)
    assert stored.description == describe(checkpoint)
    assert stored.num_bytes == sum(map(len, contents(adapter).values()))
    assert (stored.source, stored.created) == (str(adapter), True)
    assert store.digests() == [stored.digest]
    assert leftovers(root) == []
    total = stored.num_bytes
    assert seen[-1] == Progress(done=total, total=total)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


async def test_file_url_and_relative_path_name_the_same_folder(
    store: AdapterStore, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaced = adapter.with_name("my adapter")
    os.rename(adapter, spaced)
    monkeypatch.chdir(spaced.parent)
    first = await store.import_from(spaced.as_uri())
    second = await store.import_from("my adapter")
    assert first.source == second.source == str(spaced)
    assert (first.created, second.created) == (True, False)


async def test_links_are_followed_and_copied_as_files(
    store: AdapterStore, root: Path, adapter: Path, tmp_path: Path
) -> None:
    whole = contents(adapter)
    stored = await store.import_from(str(LAYOUTS["cache"](adapter)))
    assert contents(stored.folder) == whole
    assert not any(path.is_symlink() for path in stored.folder.iterdir())
    assert leftovers(root) == []


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_folder_under_the_import_root(tmp_path: Path, adapter: Path, layout: str) -> None:
    digest, whole = read_checkpoint(adapter).digest, contents(adapter)
    folder = LAYOUTS[layout](adapter)
    store = AdapterStore(tmp_path / "store", import_root=tmp_path)
    for source in (str(folder), str(folder.relative_to(tmp_path)), folder.as_uri()):
        stored = await store.import_from(source)
        assert stored.digest == digest
    assert contents(stored.folder) == whole, "and not a file more"
    store.close()


@pytest.mark.parametrize("layout", ["cache", "links_in_a_chain"])
async def test_links_out_of_the_import_root_are_refused(
    tmp_path: Path, adapter: Path, layout: str
) -> None:
    folder = LAYOUTS[layout](adapter)
    store = AdapterStore(tmp_path / "store", import_root=folder.parent / folder.name)
    with pytest.raises(SourceError, match="found a link out of"):
        await store.import_from(".")
    assert (store.digests(), store.quarantined()) == ([], [])
    store.close()


async def test_a_root_that_is_a_link_and_folders_outside_of_it(
    tmp_path: Path, adapter: Path
) -> None:
    (tmp_path / "root").mkdir()
    write_adapter(tmp_path / "root" / "real")
    (tmp_path / "root" / "alias").symlink_to("real")
    (tmp_path / "root" / "loop").symlink_to("loop")
    (tmp_path / "root" / "out").symlink_to(adapter)
    (tmp_path / "entrance").symlink_to("root")
    real = str((tmp_path / "root" / "real").resolve())
    for import_root in (tmp_path / "root", tmp_path / "entrance"):
        store = AdapterStore(tmp_path / "store", import_root=import_root)
        for good in ("alias", "real/../alias", str(tmp_path / "entrance" / "real")):
            assert (await store.import_from(good)).source == real
        for bad in (
            "out",
            "../adapter",
            str(adapter),
            adapter.as_uri(),
            str(tmp_path / "rootless"),
        ):
            with pytest.raises(SourceError, match="expected a folder under"):
                await store.import_from(bad)
        with pytest.raises(SourceError, match="Too many levels"):
            await store.import_from("loop")
        store.close()


async def test_what_is_not_part_of_an_adapter_is_never_copied(
    store: AdapterStore, adapter: Path
) -> None:
    (adapter / "notes.txt").write_text("mine")
    (adapter / "reason.json").write_text("{}")
    (adapter / "checkpoints").mkdir()
    (adapter / "checkpoints" / TENSOR_FILE).write_bytes(b"other")
    stored = await store.import_from(str(adapter))
    assert set(contents(stored.folder)) == {CONFIG_FILE, TENSOR_FILE, PARITY_FILE, "README.md"}


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, PARITY_FILE])
@pytest.mark.parametrize(
    ("make", "reason"), [(fifo, "special file"), (folder, "found a folder, expected a file")]
)
async def test_only_regular_files_are_read(
    store: AdapterStore, adapter: Path, name: str, make: Callable[[Path], None], reason: str
) -> None:
    make(adapter / name)
    with pytest.raises(SourceError, match=reason):
        await store.import_from(str(adapter))


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
async def test_missing_file(store: AdapterStore, root: Path, adapter: Path, name: str) -> None:
    (adapter / name).unlink()
    with pytest.raises(SourceMissingError, match=rf"{name} is missing"):
        await store.import_from(str(adapter))
    assert (leftovers(root), store.quarantined()) == ([], [])


async def test_missing_folder(store: AdapterStore, tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match="No such file"):
        await store.import_from(str(tmp_path / "nowhere"))


async def test_readme_and_parity_may_be_missing(store: AdapterStore, adapter: Path) -> None:
    (adapter / "README.md").unlink()
    (adapter / PARITY_FILE).unlink()
    stored = await store.import_from(str(adapter))
    assert set(contents(stored.folder)) == {CONFIG_FILE, TENSOR_FILE}


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, PARITY_FILE, "README.md"])
async def test_oversized_file_is_refused_before_it_is_copied(
    store: AdapterStore, root: Path, adapter: Path, name: str
) -> None:
    os.truncate(adapter / name, base.MAX_BYTES[name] + 1)  # sparse
    with pytest.raises(SourceError, match=rf"{name}: found \d+ bytes, expected at most"):
        await store.import_from(str(adapter))
    assert leftovers(root) == []


def cut_last_byte(folder: Path) -> None:
    data = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(data[:-1])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "not JSON": (lambda f: (f / CONFIG_FILE).write_text("{"), "not valid JSON"),
    "not REMIX": (lambda f: edit_config(f, {"peft_type": "IA3"}), "peft_type"),
    "code hook": (lambda f: edit_config(f, {"auto_map": {}}), "auto_map"),
    "k above n": (lambda f: edit_config(f, {"top_k": 9}), "top_k"),
    "cut tensors": (cut_last_byte, TENSOR_FILE),
    "shape": (lambda f: edit_tensors(f, lambda t: t.update({FIRST: torch.ones(3, 2, 5)})), "D=5"),
    "NaN": (lambda f: edit_tensors(f, lambda t: t[FIRST].fill_(float("nan"))), "nan"),
    "no effect": (lambda f: edit_tensors(f, lambda t: [x.zero_() for x in t.values()]), "B·A = 0"),
    "parity": (lambda f: edit_header(f, lambda h: h.pop("prompt.0.routes"), PARITY_FILE), "parity"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_what_fails_validation_goes_to_quarantine_with_the_reason(
    store: AdapterStore, root: Path, adapter: Path, what: str
) -> None:
    break_it, reason = BROKEN[what]
    break_it(adapter)
    with pytest.raises(RejectedAdapterError, match=reason) as caught:
        await store.import_from(str(adapter))
    (entry,) = store.quarantined()
    assert entry.id == caught.value.quarantine_id
    assert reason in entry.reason
    assert entry.source == str(adapter)
    assert entry.error == "CheckpointFormatError"
    kept = contents(root / "quarantine" / entry.id)
    assert json.loads(kept.pop("reason.json"))["reason"] == entry.reason
    assert kept == contents(adapter)
    assert (store.digests(), leftovers(root)) == ([], [])


async def test_imports_of_the_same_content_at_once_all_succeed(
    store: AdapterStore, root: Path, adapter: Path, tmp_path: Path
) -> None:
    other_store = AdapterStore(root)  # as another process would have it
    sources = [str(adapter)]
    for index in range(3):
        shutil.copytree(adapter, tmp_path / str(index))
        sources.append(str(tmp_path / str(index)))
    results = await asyncio.gather(
        *(s.import_from(source) for source in sources for s in (store, other_store))
    )
    assert len({stored.digest for stored in results}) == 1
    assert sum(stored.created for stored in results) == 1
    assert contents(store.folder(results[0].digest)) == contents(adapter)
    assert (store.quarantined(), leftovers(root)) == ([], [])
    other_store.close()


async def test_importing_again_repairs_a_damaged_adapter(
    store: AdapterStore, adapter: Path
) -> None:
    stored = await store.import_from(str(adapter))
    edit_tensors(stored.folder, lambda t: t[FIRST].add_(1))
    assert (await store.import_from(str(adapter))).created
    assert contents(stored.folder) == contents(adapter)
    (entry,) = store.quarantined()
    assert "expected the folder's name" in entry.reason


async def test_source_that_changes_under_the_copy_is_read_again(
    store: AdapterStore, adapter: Path
) -> None:
    original, changes = store_module.download, iter([True])

    def download_then_change(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)  # type: ignore[arg-type]
        if next(changes, False):
            write_adapter(adapter, seed=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "download", download_then_change)
        stored = await store.import_from(str(adapter))
    assert stored.digest == read_checkpoint(adapter).digest
    assert store.digests() == [stored.digest]


@pytest.mark.parametrize(
    "digest", ["0" * 64, "", ".", "..", "../incoming", "A" * 64, "0" * 63, "0" * 64 + "/..", "\0"]
)
def test_only_digests_lead_to_folders(store: AdapterStore, digest: str) -> None:
    with pytest.raises(UnknownDigestError):
        store.folder(digest)


@pytest.mark.parametrize(
    "source",
    [
        "",
        "a\0b",
        "a\nb",
        "ftp://host/folder",
        "S3://bucket/folder",
        "simplecache::file:///tmp/a",
        "zip://a::http://host/b.zip",
        "github://owner:repo@main/x",
        "sftp://host/a",
        "jupyter://host/a",
        "://x",
        "s3://",
        "hf://gpt2",
        "hf://owner/name/folder",
        "hf://datasets/owner/name",
        "hf://owner/name@../../x",
        "http://user:secret@host/a",
        "http://host/a?token=secret",
        "http://host/a#b",
        "http:///a",
        "http://[::1/a",
        "file://otherhost/a",
        "file://[::1/a",
        "file:///a%00b",
        "file:///a%0Ab",
        "http://host:99999/a",
        "http://host:x/a",
        "https://a..b/c",
        "https://" + "a" * 64 + "/b",
    ],
)
async def test_other_addresses_are_refused(store: AdapterStore, source: str) -> None:
    with pytest.raises(SourceError) as caught:
        await store.import_from(source)
    assert "secret" not in str(caught.value)


async def test_a_protocol_that_is_not_on_the_list_is_refused(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(SourceError, match=r"'memory'.*az, file, gs, hf, http, https, s3"):
        await store.import_from("memory://adapter")
    store.close()
    store = AdapterStore(tmp_path / "store", protocols={"s3"})
    for source in ("file:///adapter", str(tmp_path)):
        with pytest.raises(SourceError, match="'file', expected one of s3"):
            await store.import_from(source)
    store.close()


async def test_missing_package_is_named(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "store")
    with pytest.raises(SourceError, match="gcsfs"):
        await store.import_from("gs://bucket/adapter")
    store.close()


async def test_memory_file_system(store: AdapterStore, root: Path, adapter: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, data in contents(adapter).items():
        memory.pipe_file(f"/good/{name}", data)
        memory.pipe_file(f"/large/{name}", data)
    memory.pipe_file("/large/README.md", bytes(base.MAX_BYTES["README.md"] + 1))
    try:
        stored = await store.import_from("memory://good/")
        assert contents(stored.folder) == contents(adapter)
        with pytest.raises(SourceError, match="is missing"):
            await store.import_from("memory://nowhere")
        with pytest.raises(SourceError, match=r"README.md: found \d+ bytes, expected at most"):
            await store.import_from("memory://large")
        assert leftovers(root) == []
    finally:
        memory.rm("/good", recursive=True)
        memory.rm("/large", recursive=True)
