"""Backup, loss of the data folder and of the database, restore: same sets, same answers. The
commands are those of docs/backup.md, as they stand there."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from server.app import TenantApps, create_tenant_apps
from server.settings import ServerSettings
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.postgres import PostgresServer

ADMIN_KEY = "the-key-of-the-operator"

DOCUMENT = Path(__file__).parents[2] / "docs" / "backup.md"
BLOCKS = dict(re.findall(r"^```bash (\w+ \w+)\n(.*?)^```$", DOCUMENT.read_text(), re.M | re.S))
QUOTAS = {"acme": {"requests_per_minute": 5000}, "globex": {"max_concurrent": 7}}


def run(*blocks: str, env: dict[str, str]) -> None:
    for block in blocks:
        subprocess.run(["bash", "-euc", BLOCKS[block]], env={**os.environ, **env}, check=True)


@dataclass
class Server:
    apps: TenantApps

    async def call(self, method: str, path: str, key: str, **kwargs: Any) -> httpx.Response:
        app = self.apps.admin if path.startswith("/admin") else self.apps.data
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers, timeout=120, **kwargs)

    async def admin(self, method: str, path: str, **kwargs: Any) -> Any:
        got = await self.call(method, f"/admin/v1{path}", ADMIN_KEY, **kwargs)
        assert got.is_success, got.text
        return got.json() if got.content else None

    async def complete(self, key: str, model: str) -> httpx.Response:
        body = {"model": model, "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}
        return await self.call(
            "POST", "/v1/completions", key, json={**body, "logprobs": 1, "ignore_eos": True}
        )


@asynccontextmanager
async def serving(base: Path, data: Path, sources: Path, url: str | None) -> AsyncIterator[Server]:
    settings = ServerSettings(
        admin_key=ADMIN_KEY, import_root=sources, database_url=url, poll_seconds=0.05
    )
    apps = create_tenant_apps(EmbeddedEngine(EmbeddedConfig(model=str(base))), settings, data)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(apps.data.router.lifespan_context(apps.data))
        yield Server(apps)


async def state(server: Server, keys: dict[str, str]) -> dict[str, Any]:
    """All that a restore must bring back, but for the set that changes during the backup."""
    found: dict[str, Any] = {}
    for tenant, key in keys.items():
        told = (await server.complete(key, "stable")).json()
        found[tenant] = {
            "quota": await server.admin("GET", f"/tenants/{tenant}/quota"),
            "keys": await server.admin("GET", f"/tenants/{tenant}/keys"),
            "answer": (told["choices"], told["system_fingerprint"]),
        }
    found["revisions"] = await server.admin("GET", "/tenants/acme/set/revisions")
    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_restored_servers_have_the_same_sets_and_answers(
    tmp_path: Path, kind: str, postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    base, sources = save_tiny_base(tmp_path / "tiny"), tmp_path / "adapters"
    for seed in range(3):
        made = random_checkpoint(tiny_model("llama"), seed=seed)
        write_checkpoint(sources / f"a{seed}", made.config, made.layers, readme=f"# {seed}\n")
    data, backup = tmp_path / "data", tmp_path / "backup"
    backup.mkdir()
    url = postgres.fresh_database() if kind == "postgresql" else None
    env = {"DATA": str(data), "BACKUP": str(backup), "DATABASE_URL": url or ""}
    env["PATH"] = f"{postgres.binaries}:{os.environ['PATH']}"

    async with serving(base, data, sources, url) as server:
        keys = {}
        for tenant, quota in QUOTAS.items():
            await server.admin("POST", "/tenants", json={"id": tenant})
            await server.admin("PUT", f"/tenants/{tenant}/quota", json=quota)
            keys[tenant] = (await server.admin("POST", f"/tenants/{tenant}/keys"))["secret"]
        digests = [
            (await server.admin("POST", "/adapters", json={"source": f"a{seed}"}))["digest"]
            for seed in range(3)
        ]
        for tenant in keys:
            for first in (0, 1, 0):
                wanted = {"stable": digests[first], "other": digests[2]}
                await server.admin("PUT", f"/tenants/{tenant}/set", json={"adapters": wanted})
        before = await state(server, keys)
        stop, begun = asyncio.Event(), asyncio.Event()

        async def swap() -> None:
            number = 0
            while not stop.is_set():
                wanted = {"stable": digests[0], "moving": digests[1 + number % 2]}
                await server.admin("PUT", "/tenants/globex/set", json={"adapters": wanted})
                begun.set()
                number += 1

        swapping = asyncio.create_task(swap())
        await begun.wait()
        await asyncio.to_thread(run, f"{kind} backup", "adapters backup", env=env)
        stop.set()
        await swapping

    shutil.rmtree(data)
    if url is not None:
        postgres.drop(url)
        env["DATABASE_URL"] = url = postgres.fresh_database()
    run(f"{kind} restore", "adapters restore", env=env)
    # Of one adapter the source is lost, of one what was restored, of one both.
    for lost in ("a0", "a1"):
        shutil.rmtree(sources / lost)
    for digest in digests[1:]:
        shutil.rmtree(data / "store" / "adapters" / digest)
    caplog.set_level(logging.INFO)
    async with serving(base, data, sources, url) as server:
        assert await state(server, keys) == before
        moving = (await server.admin("GET", "/tenants/globex/set"))["adapters"]
        assert set(moving) == {"stable", "moving"}
        assert (await server.complete(keys["acme"], "other")).status_code == 200
        assert f"adapter {digests[2]} is not in this store; importing" in caplog.text
        # Goes on from the restored revision, and takes nothing that is not there.
        revision = (await server.admin("GET", "/tenants/acme/set"))["revision"]
        put = {"adapters": {"stable": digests[0]}}
        assert (await server.admin("PUT", "/tenants/acme/set", json=put))["after"][
            "revision"
        ] == 1 + revision


async def test_an_adapter_that_is_lost_with_its_source_is_named(tmp_path: Path) -> None:
    base, sources, data = save_tiny_base(tmp_path / "tiny"), tmp_path / "from", tmp_path / "data"
    made = random_checkpoint(tiny_model("llama"))
    write_checkpoint(sources / "a", made.config, made.layers, readme="# a\n")
    async with serving(base, data, sources, None) as server:
        await server.admin("POST", "/tenants", json={"id": "acme"})
        key = (await server.admin("POST", "/tenants/acme/keys"))["secret"]
        digest = (await server.admin("POST", "/adapters", json={"source": "a"}))["digest"]
        await server.admin("PUT", "/tenants/acme/set", json={"adapters": {"x": digest}})
    shutil.rmtree(sources / "a")
    shutil.rmtree(data / "store" / "adapters" / digest)
    async with serving(base, data, sources, None) as server:
        refused = await server.complete(key, "x")
        assert refused.status_code == 503
        assert digest in refused.json()["error"]["message"]
        ready = await server.call("GET", "/ready", "")
        assert (ready.status_code, ready.json()["failing"]) == (200, ["adapters"])
