"""A served fake engine with tenants, for the server's tests."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from remix_runtime.engines.fake import FakeConfig, FakeEngine
from server.app import TenantApps, create_tenant_apps
from server.services import Services
from server.settings import ServerSettings
from tests.unit.store.conftest import write_adapter

ADMIN_KEY = "the-key-of-the-operator"
BASE = "fake-base"


@dataclass
class TenantServer:
    apps: TenantApps
    engine: FakeEngine
    admin: httpx.AsyncClient
    """With the admin key."""
    folder: Path
    """Adapters are imported from under it."""
    _stack: AsyncExitStack
    _made: dict[int, str] = field(default_factory=dict)

    @property
    def services(self) -> Services:
        services: Services = self.apps.data.state.services
        return services

    async def client(self, app: FastAPI | None = None, key: str | None = None) -> httpx.AsyncClient:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return await self._stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app or self.apps.data, raise_app_exceptions=False),
                base_url="http://test",
                headers=headers,
                timeout=120,
            )
        )

    async def tenant(self, name: str, **quota: Any) -> httpx.AsyncClient:
        """A new tenant's client, with a key of it."""
        await self.succeed("POST", "/tenants", json={"id": name})
        if quota:
            await self.succeed("PUT", f"/tenants/{name}/quota", json=quota)
        return await self.client(key=await self.key(name))

    async def key(self, tenant: str) -> str:
        made = await self.succeed("POST", f"/tenants/{tenant}/keys")
        return str(made["secret"])

    async def adapter(self, seed: int) -> str:
        """The digest of an imported adapter."""
        if seed not in self._made:
            write_adapter(self.folder / f"adapter-{seed}", seed=seed)
            source = {"source": f"adapter-{seed}"}
            self._made[seed] = (await self.succeed("POST", "/adapters", json=source))["digest"]
        return self._made[seed]

    async def put(self, tenant: str, adapters: Mapping[str, str]) -> None:
        await self.succeed("PUT", f"/tenants/{tenant}/set", json={"adapters": adapters})

    async def succeed(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = await self.admin.request(method, f"/admin/v1{path}", **kwargs)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None


def make_tenant_apps(
    engine: FakeEngine, root: Path, import_root: Path, **settings: Any
) -> tuple[TenantApps, ServerSettings]:
    """The apps of a server that keeps its data under `root`."""
    import_root.mkdir(exist_ok=True)
    given = {"admin_key": ADMIN_KEY, "poll_seconds": 0.05, "log_level": "error", "port": 0}
    server_settings = ServerSettings(**{**given, "import_root": import_root, **settings})
    return create_tenant_apps(engine, server_settings, root / "data"), server_settings


def all_paths(app: FastAPI) -> list[str]:
    """Of the app's own table of routes, not of its document: what is hidden there counts too."""
    templates = [context.path for context in iter_route_contexts(app.routes)]
    return sorted({re.sub(r"\{\w+(:path)?\}", "acme", str(path)) for path in templates})


@asynccontextmanager
async def tenant_serving(
    root: Path, config: FakeConfig | None = None, **settings: Any
) -> AsyncIterator[TenantServer]:
    """Both apps, without sockets."""
    folder = root / "adapters"
    engine = FakeEngine(config)
    apps, _ = make_tenant_apps(engine, root, folder, **settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(apps.data.router.lifespan_context(apps.data))
        server = TenantServer(apps, engine, httpx.AsyncClient(), folder, stack)
        server.admin = await server.client(apps.admin, ADMIN_KEY)
        yield server


def complete(model: str, **body: Any) -> dict[str, Any]:
    return {"model": model, "prompt": "Hello", "max_tokens": 5, "temperature": 0, **body}
