from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from remix_runtime.errors import CheckpointFormatError
from server.live.adapters import LiveAdapters
from server.live.metrics import LiveMetrics


class StoppedClock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class WatchedEngine(FakeEngine):
    """Counts loads and unloads by digest, and can be made to take its time over loads."""

    def __init__(self, config: FakeConfig | None = None) -> None:
        super().__init__(config)
        self.loads: Counter[str] = Counter()
        self.unloads: Counter[str] = Counter()
        self.loaded: set[str] = set()
        self.may_load = asyncio.Event()
        self.may_load.set()

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        await self.may_load.wait()
        info = await super().load_adapter(folder, digest)
        self.loads[info.digest] += 1
        self.loaded.add(info.digest)
        return info

    async def unload_adapter(self, digest: str) -> None:
        await super().unload_adapter(digest)
        self.unloads[digest] += 1
        self.loaded.discard(digest)


class Shelf:
    """Folders of adapters that the fake engine takes, by digest; `lost` ones are refused."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.lost: set[str] = set()

    def put(self, name: str) -> str:
        content = json.dumps(name)
        digest = hashlib.sha256(content.encode()).hexdigest()
        (self._root / digest).mkdir(parents=True)
        (self._root / digest / "adapter_config.json").write_text(content)
        return digest

    async def repair(self, digest: str) -> bool:
        return False

    async def __call__(self, digest: str) -> Path:
        if digest in self.lost:
            raise CheckpointFormatError(f"{digest} is lost")
        return self._root / digest


@pytest.fixture
async def engine() -> AsyncIterator[WatchedEngine]:
    engine = WatchedEngine()
    await engine.start()
    yield engine
    await engine.stop()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
async def adapters(engine: WatchedEngine, shelf: Shelf) -> AsyncIterator[LiveAdapters]:
    adapters = LiveAdapters(engine, shelf, LiveMetrics(CollectorRegistry()))
    yield adapters
    await adapters.settle()
