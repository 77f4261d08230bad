"""A server with tenants around a fake engine, for the tests of its admin API."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import ParityError
from server.admin.services import AdminServices
from server.app import TenantApps
from server.runner import bind, url_of
from tests.unit.server.harness import listen
from tests.unit.server.tenants import ADMIN_KEY, make_tenant_apps
from tests.unit.store.conftest import write_adapter

KEY = ADMIN_KEY
API = "/admin/v1"


class PickyEngine(FakeEngine):
    """Refuses the digests in `refused`, as an engine does after their replay."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        if folder.name in self.refused:
            raise ParityError("replayed to other routes")
        return await super().load_adapter(folder, digest)


@dataclass
class Admin:
    apps: TenantApps
    engine: PickyEngine
    client: httpx.AsyncClient
    """With the admin key."""
    root: Path
    url: str = "http://admin"

    @property
    def app(self) -> FastAPI:
        return self.apps.admin

    @property
    def services(self) -> AdminServices:
        services: AdminServices = self.apps.admin.state.services
        return services

    def adapter_folder(self, seed: int) -> str:
        """Its name under the import root."""
        folder = self.root / f"adapter-{seed}"
        if not folder.exists():
            write_adapter(folder, seed)
        return folder.name

    async def add_adapter(self, seed: int = 0) -> str:
        source = self.adapter_folder(seed)
        answer = await self.client.post(f"{API}/adapters", json={"source": source})
        return str(answer.raise_for_status().json()["digest"])

    async def add_tenant(self, tenant: str = "acme") -> str:
        (await self.client.post(f"{API}/tenants", json={"id": tenant})).raise_for_status()
        return tenant

    async def add_key(self, tenant: str = "acme") -> str:
        answer = await self.client.post(f"{API}/tenants/{tenant}/keys")
        return str(answer.raise_for_status().json()["secret"])

    async def put_set(
        self,
        adapters: dict[str, str],
        tenant: str = "acme",
        *,
        if_match: str | None = None,
        dry_run: bool = False,
    ) -> httpx.Response:
        return await self.client.put(
            f"{API}/tenants/{tenant}/set",
            json={"adapters": adapters},
            headers={} if if_match is None else {"If-Match": if_match},
            params={"dry_run": "true"} if dry_run else {},
        )

    async def send_by_the_letter(
        self, method: str, path: str, headers: dict[str, str]
    ) -> httpx.Response:
        """A request without the key, whose path no client has tidied, as httpx does."""
        target, _, query = path.encode().partition(b"?")
        there = {"path": unquote(target), "raw_path": target, "query_string": query}

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await self.app({**scope, **there}, receive, send)

        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=self.url) as client:
            return await client.request(method, "/", headers=headers)

    @asynccontextmanager
    async def as_tenant(self, key: str) -> AsyncIterator[httpx.AsyncClient]:
        """A client of the data API."""
        transport = httpx.ASGITransport(self.apps.data, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://data", headers=headers
        ) as client:
            yield client


@asynccontextmanager
async def administering(root: Path, **settings: Any) -> AsyncIterator[Admin]:
    """The apps without sockets. Adapters may be imported from under `root`/sources."""
    sources = root / "sources"
    engine = PickyEngine()
    apps, _ = make_tenant_apps(engine, root, sources, **settings)
    transport = httpx.ASGITransport(apps.admin, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with (
        apps.data.router.lifespan_context(apps.data),
        httpx.AsyncClient(transport=transport, base_url="http://admin", headers=headers) as client,
    ):
        yield Admin(apps, engine, client, sources)


@asynccontextmanager
async def listening(root: Path, **settings: Any) -> AsyncIterator[Admin]:
    """The admin app on a real socket, beside the data app on another."""
    sources = root / "sources"
    engine = PickyEngine()
    apps, server_settings = make_tenant_apps(engine, root, sources, **settings)
    headers = {"Authorization": f"Bearer {KEY}"}
    with bind("127.0.0.1", 0) as listener:
        url = url_of(listener)
        async with (
            listen(apps.data, server_settings, admin=(apps.admin, listener)),
            httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client,
        ):
            yield Admin(apps, engine, client, sources, url)
