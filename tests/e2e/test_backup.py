"""Backup, loss of the data folder and of the database, restore: same sets, same answers. The
commands are those of docs/backup.md, as they stand there."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.postgres import PostgresServer
from tests.served import Served, served, tenants

DOCUMENT = Path(__file__).parents[2] / "docs" / "backup.md"
BLOCKS = dict(re.findall(r"^```bash (\w+ \w+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S))
QUOTAS = {"acme": {"requests_per_minute": 5000}, "globex": {"max_concurrent": 7}}


def run(*blocks: str, env: dict[str, str]) -> None:
    for block in blocks:
        subprocess.run(["bash", "-euc", BLOCKS[block]], env={**os.environ, **env}, check=True)


async def answer(server: Served, key: str, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
    async with server.client(key) as client:
        got = await client.post("/v1/completions", json={**body, "logprobs": 1, "ignore_eos": True})
    assert got.status_code == 200, got.text
    told = got.json()
    return {"choices": told["choices"], "fingerprint": told["system_fingerprint"]}


async def state(server: Served, keys: dict[str, str]) -> dict[str, Any]:
    """All that a restore must bring back, but for sets that changed during the backup."""
    found: dict[str, Any] = {}
    for tenant, key in keys.items():
        found[tenant] = {
            "quota": await server.admin("GET", f"/tenants/{tenant}/quota"),
            "keys": await server.admin("GET", f"/tenants/{tenant}/keys"),
            "answers": [await answer(server, key, "stable")],
        }
    found["acme"]["revisions"] = await server.admin("GET", "/tenants/acme/set/revisions")
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_restored_servers_have_the_same_sets_and_answers(
    tmp_path: Path, kind: str, postgres: PostgresServer
) -> None:
    base = save_tiny_base(tmp_path / "tiny")
    sources = tmp_path / "adapters"
    for seed in range(3):
        made = random_checkpoint(tiny_model("llama"), seed=seed)
        write_checkpoint(sources / f"a{seed}", made.config, made.layers, readme=f"# {seed}\n")
    data, backup = tmp_path / "data", tmp_path / "backup"
    backup.mkdir()
    url = postgres.fresh_database() if kind == "postgresql" else None
    env = {"DATA": str(data), "BACKUP": str(backup), "DATABASE_URL": url or ""}
    env["PATH"] = f"{postgres.binaries}:{os.environ['PATH']}"
    options = (
        *("--base", str(base), "--threads", "1", "--import-root", str(sources)),
        *tenants(data, *(("--database-url", url) if url else ())),
    )

    async with served(tmp_path / "log", *options) as server:
        keys = {name: await server.tenant(name, **quota) for name, quota in QUOTAS.items()}
        digests = [
            (await server.admin("POST", "/adapters", json={"source": f"a{seed}"}))["digest"]
            for seed in range(3)
        ]
        for tenant in keys:
            for first in (0, 1, 0):
                wanted = {"stable": digests[first], "other": digests[2]}
                await server.admin("PUT", f"/tenants/{tenant}/set", json={"adapters": wanted})
        before = await state(server, keys)
        stop, swaps = asyncio.Event(), 0

        async def swap() -> None:
            nonlocal swaps
            while not stop.is_set():
                wanted = {"stable": digests[0], "moving": digests[1 + swaps % 2]}
                await server.admin("PUT", "/tenants/globex/set", json={"adapters": wanted})
                swaps += 1

        swapping = asyncio.create_task(swap())
        async with asyncio.timeout(60):
            while not swaps:  # noqa: ASYNC110 - no event tells of it
                await asyncio.sleep(0.01)
        await asyncio.to_thread(run, f"{kind} backup", "adapters backup", env=env)
        stop.set()
        await swapping
        assert await server.end() == 0

    shutil.rmtree(data)
    shutil.rmtree(sources / "a0")
    if url is not None:
        postgres.drop(url)
        env["DATABASE_URL"] = url = postgres.fresh_database()
        options = (*options[:-1], url)
    run(f"{kind} restore", "adapters restore", env=env)
    # One adapter is lost with its source, one without.
    for lost in digests[1:]:
        shutil.rmtree(data / "store" / "adapters" / lost)
    shutil.rmtree(sources / "a1")
    async with served(tmp_path / "log", *options) as server:
        assert await state(server, keys) == before
        moving = (await server.admin("GET", "/tenants/globex/set"))["adapters"]
        assert moving["stable"]["digest"] == digests[0]
        assert moving["moving"]["digest"] in digests[1:]
        assert (await answer(server, keys["acme"], "other"))["fingerprint"] is not None
        await server.admin(
            "PUT", "/tenants/acme/set", json={"adapters": {"stable": digests[0]}}
        )  # goes on from the restored revision
        assert await server.end() == 0
    assert f"adapter {digests[2]} is not in this store; importing" in (tmp_path / "log").read_text()
