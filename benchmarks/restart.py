"""How soon does a server with hundreds of tenants serve again after a restart?

    python -m benchmarks.restart [--base FOLDER] [--tenants 200] [--adapters 500]

Registers the adapters and a set of several for each tenant, starts `remix serve` on that data, and
measures: process start to `/ready`, the first answers of tenants whose adapters are all cold, the
answers after them. Then every set is compared with what was registered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from transformers import AutoConfig

from benchmarks.adapters import AdapterShape, write_random_adapter
from benchmarks.machine import describe_machine
from benchmarks.storm import request
from benchmarks.swaps import served
from benchmarks.traffic import percentile
from remix_runtime.base_model import without_weights
from remix_runtime.demo_model import demo_model
from server.store import AdapterStore
from server.tenancy import Directory
from server.tenancy.records import AdapterRecord

ASKED = 20
"""Tenants that send requests after the restart."""
NAMES = 5
"""Adapters of each set."""


@dataclass(frozen=True, slots=True)
class Registered:
    keys: dict[str, str]
    sets: dict[str, dict[str, str]]


async def register(base: str, folder: Path, num_tenants: int, num_adapters: int) -> Registered:
    model = without_weights(AutoConfig.from_pretrained(base))
    store = AdapterStore(folder / "store", base=None)
    directory = await Directory.open(f"sqlite:///{folder}/remix.db")
    digests = []
    for seed in range(num_adapters):
        source = folder / "source"
        write_random_adapter(source, model, AdapterShape(2, 1, 1), ("down_proj",), seed)
        stored = await store.import_from(str(source))
        record = AdapterRecord(
            digest=stored.digest, source=stored.source, num_bytes=stored.num_bytes
        )
        await directory.add_adapter(record, actor="benchmark")
        digests.append(stored.digest)
    keys, sets, choose = {}, {}, random.Random(0)
    for number in range(num_tenants):
        tenant = f"tenant-{number}"
        await directory.create_tenant(tenant, actor="benchmark")
        keys[tenant] = (await directory.create_key(tenant, actor="benchmark")).secret
        chosen = choose.sample(digests, NAMES)
        sets[tenant] = {f"style-{i}": digest for i, digest in enumerate(chosen)}
        await directory.put_set(tenant, sets[tenant], expected=None, actor="benchmark")
    await directory.close()
    store.close()
    return Registered(keys, sets)


async def measure(base: str, num_tenants: int, num_adapters: int) -> bool:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registered = await register(base, folder, num_tenants, num_adapters)
        started = time.perf_counter()
        async with served(base, folder, folder) as (url, _):
            ready = time.perf_counter() - started
            async with httpx.AsyncClient(base_url=url, timeout=120) as client:
                asked = list(registered.keys)[:ASKED]
                cold = await _ask_all(client, registered, asked)
                warm = await _ask_all(client, registered, asked)
                same = await _sets_are(client, registered)
    print(json.dumps(describe_machine()))
    print(f"{num_tenants} tenants, {num_adapters} adapters, sets of {NAMES}")
    print(f"process start to serving: {ready:.1f} s")
    for kind, seconds in (("cold", cold), ("warm", warm)):
        print(
            f"{ASKED} {kind} requests at once: p50 {percentile(seconds, 0.5):.2f} s, "
            f"last {max(seconds):.2f} s"
        )
    print(f"sets as registered: {same}")
    return same


async def _ask_all(
    client: httpx.AsyncClient, registered: Registered, tenants: list[str]
) -> list[float]:
    async def ask(tenant: str) -> float:
        began = time.perf_counter()
        answer = await client.post(
            "/v1/completions",
            json={**request("style-0"), "stream": False},
            headers={"Authorization": f"Bearer {registered.keys[tenant]}"},
        )
        fingerprint = answer.raise_for_status().json()["system_fingerprint"]
        assert fingerprint == registered.sets[tenant]["style-0"], "an answer of another adapter"
        return time.perf_counter() - began

    return list(await asyncio.gather(*map(ask, tenants)))


async def _sets_are(client: httpx.AsyncClient, registered: Registered) -> bool:
    for tenant, key in registered.keys.items():
        answer = await client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
        found = {model["id"]: model["root"] for model in answer.raise_for_status().json()["data"]}
        if found != registered.sets[tenant]:
            return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--base", help="a model folder; the demo model by default")
    parser.add_argument("--tenants", type=int, default=200)
    parser.add_argument("--adapters", type=int, default=500)
    args = parser.parse_args()
    same = asyncio.run(measure(args.base or str(demo_model()), args.tenants, args.adapters))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
