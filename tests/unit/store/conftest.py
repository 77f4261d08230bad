from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from server.store import AdapterStore, Progress
from tests.unit.adapter.checkpoint.adapters import (
    CONFIG,
    TENSOR_FILE,
    make_layers,
    make_parity,
)
from tests.unit.store.web import TO_TESTS, FileWeb

MakeAdapter = Callable[..., Path]


def write_adapter(path: Path, seed: int = 0) -> str:
    """A whole adapter folder; its digest."""
    return write_checkpoint(
        path, CONFIG, make_layers(seed), readme=f"# {seed}\n", parity=make_parity()
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter"
    write_adapter(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AdapterStore]:
    store = AdapterStore(
        tmp_path / "store",
        protocols={"file", "http", "https", "s3", "hf", "memory"},
        policy=TO_TESTS,
        quarantine_entries=3,
    )
    yield store
    store.close()


@pytest.fixture
def root(store: AdapterStore, tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def web(adapter: Path) -> Iterator[FileWeb]:
    """Serves the adapter under /adapter."""
    web = FileWeb({f"/adapter/{name}": data for name, data in contents(adapter).items()})
    yield web
    web.close()


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "incoming").iterdir())


async def import_to_the_half(store: AdapterStore, root: Path, source: str, adapter: Path) -> int:
    """Stops the import of `source`, which is `adapter`, in the middle of its tensors. How many
    bytes of them are there then."""
    sizes = {name: len(data) for name, data in contents(adapter).items()}
    before = sum(sizes.values()) - sizes[TENSOR_FILE]
    task: asyncio.Future[object]

    def progress(now: Progress) -> None:
        if now.done > before + sizes[TENSOR_FILE] // 2:
            task.cancel()

    task = asyncio.ensure_future(store.import_from(source, progress=progress))
    with pytest.raises(asyncio.CancelledError):
        await task
    (partial,) = (root / "incoming").iterdir()
    have = (partial / "files" / TENSOR_FILE).stat().st_size
    assert 0 < have < sizes[TENSOR_FILE]
    return have
