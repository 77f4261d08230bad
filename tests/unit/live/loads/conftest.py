"""Live adapters over an engine and folders that do what a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from remix_runtime.contracts import AdapterDefaults, AdapterInfo
from remix_runtime.errors import CapacityError, CheckpointError
from server.live import adapters as live_adapters
from server.live.adapters import LOADS_AT_ONCE, LiveAdapters
from server.live.metrics import LiveMetrics
from tests.unit.live.conftest import StoppedClock

DEFAULTS = AdapterDefaults(temperature=0.5)
DAMAGED, TOO_LARGE = CheckpointError("it is damaged"), CapacityError("it is too large")
OURS, BUG = OSError("no descriptors are left"), ZeroDivisionError("a mistake of ours")


class Engine:
    """Loads in no time of its clock but `seconds`, fails with what `errors` has for a digest, and
    waits while a digest is `held`."""

    model = SimpleNamespace(max_requests=2 * LOADS_AT_ONCE)

    def __init__(self, clock: StoppedClock) -> None:
        self._clock = clock
        self.seconds = 0.0
        self.errors: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.loads: Counter[str] = Counter()
        self.loaded: set[str] = set()

    async def load_adapter(self, folder: Path, digest: str) -> AdapterInfo:
        assert folder.name == digest
        await self._wait(digest)
        self.loads[digest] += 1
        self._clock.now += self.seconds
        if digest in self.errors:
            raise self.errors[digest]
        self.loaded.add(digest)
        return info_of(digest)

    async def unload_adapter(self, digest: str) -> None:
        await self._wait(digest)
        self.loaded.remove(digest)

    async def _wait(self, digest: str) -> None:
        if digest in self.held:
            await self.held[digest].wait()


class Folders:
    """`repaired`: what a repair finds, or the error that it ends with."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self._root = root
        self._engine = engine
        self.repaired: bool | Exception = False
        self.repairs: list[str] = []
        self.may_repair = asyncio.Event()
        self.may_repair.set()
        self.error: Exception | None = None

    async def __call__(self, digest: str) -> Path:
        if self.error is not None:
            raise self.error
        return self._root / digest

    async def repair(self, digest: str) -> bool:
        self.repairs.append(digest)
        await self.may_repair.wait()
        if isinstance(self.repaired, Exception):
            raise self.repaired
        if self.repaired:
            del self._engine.errors[digest]
        return self.repaired


def info_of(digest: str) -> AdapterInfo:
    return AdapterInfo(
        digest=digest, num_layers=1, num_experts=2, top_k=1, r=1, num_bytes=1, defaults=DEFAULTS
    )


async def moments() -> None:
    """Lets tasks go on until they wait for something that only the test can bring about."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(live_adapters, "time", SimpleNamespace(monotonic=clock))
    return clock


@pytest.fixture
def engine(clock: StoppedClock) -> Engine:
    return Engine(clock)


@pytest.fixture
def folders(tmp_path: Path, engine: Engine) -> Folders:
    return Folders(tmp_path, engine)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def adapters(engine: Engine, folders: Folders, registry: CollectorRegistry) -> LiveAdapters:
    adapters = LiveAdapters(engine, folders, LiveMetrics(registry))  # type: ignore[arg-type]
    adapters.pin("x")
    return adapters
