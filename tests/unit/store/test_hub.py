"""From the Hugging Face hub, as a small server plays it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from server.store import (
    AdapterStore,
    RejectedAdapterError,
    SourceMissingError,
    SourceUnavailableError,
    StoreError,
)
from server.store import download as download_module
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE, TENSOR_FILE
from tests.unit.store.conftest import contents, import_to_the_half, leftovers, write_adapter
from tests.unit.store.web import Hub, Reply

ROOT = Path(__file__).parents[3]
OLD, NEW = "a" * 40, "b" * 40
CHUNK = 512
SECRET = "inside-information"


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "CHUNK_BYTES", CHUNK)


@pytest.fixture
def hub(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """owner/pirate: `main` is the newer one of two commits."""
    write_adapter(tmp_path / "newer", seed=1)
    extra = {".gitattributes": b"", "training_args.bin": b"pickle"}
    commits = {OLD: contents(adapter), NEW: {**contents(tmp_path / "newer"), **extra}}
    hub = Hub("owner/pirate", commits)
    hub.branches = {"main": NEW, "v1": OLD, "refs/pr/1": OLD}
    # What HF_ENDPOINT sets when the library is imported; see the last test for the real thing.
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + path)
    yield hub
    hub.close()


@pytest.mark.parametrize(
    ("revision", "commit"), [("", NEW), ("@main", NEW), ("@v1", OLD), ("@refs/pr/1", OLD)]
)
async def test_revision_is_pinned_to_its_commit(
    store: AdapterStore, hub: Hub, adapter: Path, tmp_path: Path, revision: str, commit: str
) -> None:
    stored = await store.import_from(f"hf://owner/pirate{revision}")
    assert stored.source == f"hf://owner/pirate@{commit}"
    expected = adapter if commit == OLD else tmp_path / "newer"
    assert contents(stored.folder) == contents(expected)
    fetched = [served.path for served in hub.served if "/resolve/" in served.path]
    assert all(f"/resolve/{commit}/" in path for path in fetched)
    assert (await store.import_from(stored.source)).digest == stored.digest


@pytest.mark.usefixtures("small_chunks")
async def test_stopped_import_continues_where_it_was(
    store: AdapterStore, root: Path, hub: Hub, adapter: Path
) -> None:
    have = await import_to_the_half(store, root, "hf://owner/pirate@v1", adapter)
    size = (adapter / TENSOR_FILE).stat().st_size

    hub.served.clear()
    stored = await store.import_from(f"hf://owner/pirate@{OLD}")  # the same commit
    assert contents(stored.folder) == contents(adapter)
    served = hub.bodies(TENSOR_FILE)
    assert served[0].range == f"bytes={have}-{min(have + CHUNK, size) - 1}"
    assert sum(answer.sent for answer in served) == size - have
    assert hub.bodies("README.md") == []


async def test_branch_that_moves_in_the_middle_changes_nothing(
    store: AdapterStore, hub: Hub, adapter: Path
) -> None:
    def before(path: str) -> None:
        if "/resolve/" in path:
            hub.branches["v1"] = NEW

    hub.before = before
    stored = await store.import_from("hf://owner/pirate@v1")
    assert stored.source == f"hf://owner/pirate@{OLD}"
    assert contents(stored.folder) == contents(adapter)


@pytest.mark.parametrize("name", [TENSOR_FILE, CONFIG_FILE])
async def test_bytes_that_are_not_what_the_hub_states_go_to_quarantine(
    store: AdapterStore, hub: Hub, name: str
) -> None:
    hub.stated = {OLD: dict(hub.commits[OLD])}
    data = bytearray(hub.commits[OLD][name])
    data[-1] ^= 1  # a valid adapter still, in the tensor file
    hub.commits[OLD][name] = bytes(data)
    with pytest.raises(RejectedAdapterError, match=rf"{name}: found .* as the source states"):
        await store.import_from("hf://owner/pirate@v1")
    assert len(store.quarantined()) == 1
    assert store.digests() == []


@pytest.mark.parametrize("source", ["hf://owner/other", "hf://owner/pirate@v9"])
async def test_missing_repository_and_revision(
    store: AdapterStore, root: Path, hub: Hub, source: str
) -> None:
    with pytest.raises(SourceMissingError, match="404"):
        await store.import_from(source)
    assert leftovers(root) == []


async def test_hub_that_is_down(store: AdapterStore, hub: Hub) -> None:
    hub.down = True
    with pytest.raises(SourceUnavailableError, match="503"):
        await store.import_from("hf://owner/pirate")


@pytest.mark.parametrize("status", [403, 404, 500])
async def test_errors_say_nothing_of_what_was_answered(
    store: AdapterStore, hub: Hub, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    code = "RepoNotFound" if status == 404 else "GatedRepo"
    headers = {"X-Error-Code": code, "X-Error-Message": SECRET, "X-Request-Id": SECRET}
    body = f'{{"error": "{SECRET}"}}'.encode()
    monkeypatch.setattr(hub, "reply", lambda *_: Reply(status, headers, body))
    with pytest.raises(StoreError, match=f"hf://owner/pirate: HTTP status {status}") as told:
        await store.import_from("hf://owner/pirate")
    assert SECRET not in str(told.value)


def test_endpoint_comes_from_the_environment(hub: Hub, tmp_path: Path) -> None:
    """As an operator sets it: HF_ENDPOINT is read when the library is imported."""
    code = (
        "import asyncio, pathlib, sys; from server.store import AdapterStore;"
        "store = AdapterStore(pathlib.Path(sys.argv[1]));"
        "print(asyncio.run(store.import_from('hf://owner/pirate@v1')).source)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == f"hf://owner/pirate@{OLD}", done.stderr
