"""How soon does a server with hundreds of tenants serve again after a restart?

    python -m benchmarks.tenants.restart [--base FOLDER] [--tenants 200] [--adapters 500]

Registers the adapters and a set of several for each tenant, starts `remix serve` on that data, and
measures: process start to `/ready`, the first answers of tenants whose adapters are all cold, the
answers after them. Then every set is compared with what was registered.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from benchmarks.adapters import write_random_adapters
from benchmarks.options import Base, Out
from benchmarks.result import publish
from benchmarks.rounds import percentile
from benchmarks.shape import AdapterShape
from benchmarks.tenants.served import client, completion, served
from server.store import AdapterStore
from server.tenancy import Directory
from server.tenancy.records import AdapterRecord

ASKED = 20
"""Tenants that send requests after the restart."""
NAMES = 5
"""Adapters of each set."""


@dataclass(frozen=True, slots=True)
class Tenant:
    key: str
    entries: Mapping[str, str]


async def register(base: Path, folder: Path, tenants: int, adapters: int) -> list[Tenant]:
    store = AdapterStore(folder / "store")
    directory = await Directory.open(f"sqlite:///{folder}/remix.db")
    digests = []
    shape, targets = AdapterShape(2, 1, 1), ("down_proj",)
    for source in write_random_adapters(folder / "sources", base, shape, adapters, targets):
        stored = await store.import_from(str(source))
        record = AdapterRecord(
            digest=stored.digest, source=stored.source, num_bytes=stored.num_bytes
        )
        await directory.add_adapter(record, actor="benchmark")
        digests.append(stored.digest)
    found, choose = [], random.Random(0)
    for tenant in (f"tenant-{number}" for number in range(tenants)):
        await directory.create_tenant(tenant, actor="benchmark")
        key = (await directory.create_key(tenant, actor="benchmark")).secret
        entries = {f"style-{i}": digest for i, digest in enumerate(choose.sample(digests, NAMES))}
        await directory.put_set(tenant, entries, expected=None, actor="benchmark")
        found.append(Tenant(key, entries))
    await directory.close()
    store.close()
    return found


async def ask(url: str, tenant: Tenant) -> float:
    """Seconds of one request."""
    async with client(url, tenant.key) as http:
        began = time.perf_counter()
        answer = await http.post("/v1/completions", json=completion("style-0", stream=False))
        fingerprint = answer.raise_for_status().json()["system_fingerprint"]
        assert fingerprint == tenant.entries["style-0"], "an answer of another adapter"
        return time.perf_counter() - began


async def has_its_set(url: str, tenant: Tenant) -> bool:
    async with client(url, tenant.key) as http:
        answer = await http.get("/v1/models")
    found = {model["id"]: model["root"] for model in answer.raise_for_status().json()["data"]}
    return found == tenant.entries


async def measure(base: Path, tenants: int, adapters: int) -> tuple[bool, list[str]]:
    """Whether every set is as registered, and what was measured."""
    with tempfile.TemporaryDirectory() as name:
        registered = await register(base, Path(name), tenants, adapters)
        started = time.perf_counter()
        async with served(base, Path(name), Path(name)) as (url, _):
            lines = [f"process start to serving: {time.perf_counter() - started:.1f} s"]
            for kind in ("cold", "warm"):
                asked = registered[:ASKED]
                times = await asyncio.gather(*(ask(url, tenant) for tenant in asked))
                half, last = percentile(times, 0.5), max(times)
                requests = f"{len(asked)} {kind} requests at once"
                lines.append(f"{requests}: p50 {half:.2f} s, last {last:.2f} s")
            return all([await has_its_set(url, tenant) for tenant in registered]), lines


def main(base: Base, tenants: int = 200, adapters: int = 500, out: Out = None) -> None:
    """Restart a server that has so many tenants and adapters."""
    same, lines = asyncio.run(measure(base, tenants, adapters))
    size = f"{tenants} tenants, {adapters} adapters, sets of {NAMES}"
    publish(out, "Restart", size, *lines, f"sets as registered: {same}")
    raise typer.Exit(0 if same else 1)


if __name__ == "__main__":
    typer.run(main)
