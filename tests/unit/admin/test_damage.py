"""Adapters whose folder in the store is damaged while they are served: requests for them get a 503
of its kind, the folder goes into quarantine once and is imported again, and the others go on."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import httpx
import pytest

from remix_runtime.adapter.checkpoint import folder as folder_module
from remix_runtime.adapter.checkpoint import reader, tensor_file
from server.live import adapters as live_adapters
from server.store import rooms
from tests.examination import examine_here
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE, PARITY_FILE
from tests.unit.admin.harness import API, Admin, administering
from tests.unit.server.harness import eventually
from tests.unit.store.conftest import TENSOR_FILE, contents, write_adapter

DEFAULTS_FILE = "defaults.json"
ASKS = 12


def flip(path: Path, at: int = -5) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def replace_by_another(folder: Path) -> None:
    shutil.rmtree(folder)
    write_adapter(folder, seed=77)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("lost+found")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of a weight": lambda folder: flip(folder / TENSOR_FILE),
    "a bit of the header": lambda folder: flip(folder / TENSOR_FILE, 9),
    "a bit of the configuration": lambda folder: flip(folder / CONFIG_FILE, 0),
    "tensors cut short": lambda folder: os.truncate(folder / TENSOR_FILE, 999),
    "no tensors": lambda folder: (folder / TENSOR_FILE).unlink(),
    "no configuration": lambda folder: (folder / CONFIG_FILE).unlink(),
    "a parity file cut short": lambda folder: os.truncate(folder / PARITY_FILE, 9),
    "defaults that are none": lambda folder: (folder / DEFAULTS_FILE).write_text("{"),
    "defaults that nobody wrote": lambda folder: (folder / DEFAULTS_FILE).write_text(
        '{"temperature": 1.5}'
    ),
    "a folder for the tensors": lambda folder: (
        (folder / TENSOR_FILE).unlink(),
        (folder / TENSOR_FILE).mkdir(),
    ),
    "nothing in the folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "another adapter": replace_by_another,
}
GONE: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    "a file for the folder": replace_by_a_file,
}


@dataclass
class Served:
    """Two adapters in a tenant's set, of which the engine keeps one in memory."""

    admin: Admin
    data: httpx.AsyncClient
    digest: str
    folder: Path

    async def ask(self, model: str = "pirate", **fields: Any) -> httpx.Response:
        body = {"model": model, "prompt": "hi", "max_tokens": 3, **fields}
        return await self.data.post("/v1/completions", json=body)

    async def chill(self, engine_has_it: bool) -> None:
        """Has the adapter leave the engine, or only its memory."""
        if engine_has_it:
            assert (await self.ask()).status_code == 200
        assert (await self.ask("haiku")).status_code == 200

    async def quarantined(self) -> list[dict[str, Any]]:
        answer = await self.admin.client.get(f"{API}/quarantine")
        found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
        return found

    async def failing(self) -> list[str]:
        answer = await self.data.get("/ready")
        found: list[str] = answer.raise_for_status().json().get("failing", [])
        return found

    def gauge(self) -> float | None:
        registry = self.admin.services.metrics._registry
        return registry.get_sample_value("remix_adapters_unavailable")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """After a restart: nothing is loaded yet."""
    async with administering(tmp_path) as admin:
        pirate, haiku = await admin.add_adapter(0), await admin.add_adapter(1)
        tenant = await admin.add_tenant()
        key = await admin.add_key()
        (await admin.put_set({"pirate": pirate, "haiku": haiku})).raise_for_status()
    async with administering(tmp_path) as admin, admin.as_tenant(key) as data:
        assert admin.services.sets.live(tenant).adapters
        admin.engine._adapters._host_adapters = 1
        yield Served(admin, data, pirate, admin.services.store.folder(pirate))


def refused(answer: httpx.Response, digest: str) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "model_unavailable"
    assert digest in answer.json()["error"]["message"]
    assert "store" not in answer.text
    assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("engine_has_it", [False, True])
@pytest.mark.parametrize("damage", DAMAGES | GONE)
async def test_it_is_imported_again(served: Served, damage: str, engine_has_it: bool) -> None:
    before = contents(served.folder)
    await served.chill(engine_has_it)
    (DAMAGES | GONE)[damage](served.folder)
    first = await served.ask()
    if damage in DAMAGES or engine_has_it:
        refused(first, served.digest)
    else:
        assert first.status_code == 200  # it is fetched like one that another server imported
    assert (await served.ask("haiku")).status_code == 200
    await served.admin.services.adapters.settle()
    answer = await served.ask()
    assert answer.status_code == 200, answer.text
    assert answer.json()["system_fingerprint"] == served.digest
    assert contents(served.folder) == before
    assert len(await served.quarantined()) == (damage in DAMAGES)
    assert (await served.failing(), served.gauge()) == ([], 0)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Of adapters, by whoever reads them: the engine here, examinations in another process."""
    reads: Counter[str] = Counter()
    for module, name in ((reader, "read_tensors"), (rooms, "examine")):

        def counting(*args: Any, read: Any = getattr(module, name), name: str = name) -> Any:
            reads[name] += 1
            return read(*args)

        monkeypatch.setattr(module, name, counting)
    return reads


@pytest.mark.parametrize("engine_has_it", [False, True])
@pytest.mark.parametrize("damage", ["a bit of a weight", "no configuration", "no folder"])
async def test_without_a_source_it_is_refused_without_reading_and_healed_by_an_import(
    served: Served, damage: str, engine_has_it: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.chill(engine_has_it)
    (DAMAGES | GONE)[damage](served.folder)
    source = served.admin.root / "adapter-0"
    away = source.rename(served.admin.root / "away")
    refused(await served.ask(), served.digest)
    await served.admin.services.adapters.settle()
    reads = count_reads(monkeypatch)
    for _ in range(ASKS):
        refused(await served.ask(), served.digest)
        refused(await served.ask(stream=True), served.digest)
    assert not reads
    assert (await served.ask("haiku")).status_code == 200
    assert (await served.failing(), served.gauge()) == (["adapters"], 1)
    assert len(await served.quarantined()) == (damage in DAMAGES)
    away.rename(source)
    monkeypatch.setattr(live_adapters, "RETRY_SECONDS", 0.0)
    await eventually_served(served)
    assert (await served.failing(), served.gauge()) == ([], 0)
    assert len(await served.quarantined()) == (damage in DAMAGES)


async def eventually_served(served: Served) -> None:
    async with asyncio.timeout(60):
        while (await served.ask()).status_code != 200:  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.01)


async def test_the_pause_between_two_tries_grows(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(live_adapters, "time", SimpleNamespace(monotonic=lambda: now))
    shutil.rmtree(served.folder)
    shutil.rmtree(served.admin.root / "adapter-0")
    pauses = []
    for _ in range(9):
        refused(await served.ask(), served.digest)
        answer = await served.ask()
        refused(answer, served.digest)
        pauses.append(int(answer.headers["retry-after"]))
        now += pauses[-1]
    assert pauses == [5, 10, 20, 40, 80, 160, 300, 300, 300]


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
async def test_a_disk_that_gives_nothing_is_damage_and_want_of_descriptors_is_none(
    served: Served, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sound folder is not thrown away because this process has no more files."""
    read, broken = folder_module.read_exactly, served.folder

    def failing(stream: BinaryIO, size: int, name: str) -> bytes:
        here = os.path.dirname(os.readlink(f"/proc/self/fd/{stream.fileno()}"))
        if here == str(broken) and name == TENSOR_FILE:
            stream = Broken(code)  # type: ignore[assignment]
        return read(stream, size, name)

    monkeypatch.setattr(rooms, "examine", examine_here)
    for module in (folder_module, tensor_file):
        monkeypatch.setattr(module, "read_exactly", failing)
    refused(await served.ask(), served.digest)
    await served.admin.services.adapters.settle()
    assert len(await served.quarantined()) == (code == errno.EIO)
    monkeypatch.undo()
    monkeypatch.setattr(live_adapters, "RETRY_SECONDS", 0.0)
    await eventually_served(served)


class Broken:
    def __init__(self, code: int) -> None:
        self._code = code

    def read(self, size: int) -> bytes:
        raise OSError(self._code, os.strerror(self._code))


async def test_a_swap_waits_for_the_repair(served: Served) -> None:
    flip(served.folder / TENSOR_FILE)
    answer = await served.admin.put_set({"corsair": served.digest})
    assert answer.status_code == 200, answer.text
    assert (await served.ask("corsair")).status_code == 200
    assert len(await served.quarantined()) == 1


async def test_a_source_that_holds_another_adapter_now_repairs_nothing(served: Served) -> None:
    source = served.admin.root / "adapter-0"
    flip(served.folder / TENSOR_FILE)
    shutil.rmtree(source)
    write_adapter(source, seed=5)
    refused(await served.ask(), served.digest)
    await served.admin.services.adapters.settle()
    refused(await served.ask(), served.digest)
    assert (await served.failing(), len(await served.quarantined())) == (["adapters"], 1)
    await eventually(lambda: served.gauge() == 1)
