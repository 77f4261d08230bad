"""The server that the faults are injected into: tenants on a real socket, with times that suit a
trial."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from remix_runtime import watch
from server import runner
from server.http.connection import ConnectionLimits, Door
from server.live import access, adapters, follower
from server.store import rooms
from server.tenancy import database
from tests.examination import examine_here
from tests.hostile.faults.books import LIMIT, Books, Counted
from tests.unit.server.harness import listen
from tests.unit.server.tenants import ADMIN_KEY, TenantServer, make_tenant_apps

SLOW_SECONDS = 2.0
"""What a client may take for a request's head, or for a part of its body."""

_CALLS = ("READ", "WRITE", "ANSWER")
_DATABASE_SECONDS = 120.0
"""What a call may take that meets no fault: no machine is so busy. Faults are told at once."""

WriteAdapter = Callable[[Path, int], object]


@dataclass(frozen=True)
class Served:
    server: TenantServer
    address: tuple[str, int]
    door: Door
    books: Books
    database: Path
    write_adapter: WriteAdapter


@asynccontextmanager
async def serving(root: Path, engine: Any, write_adapter: WriteAdapter) -> AsyncIterator[Served]:
    books, doors = Books(), list[Door]()

    def make_door(limits: ConnectionLimits) -> Door:
        short = {"head_seconds": SLOW_SECONDS, "body_seconds": SLOW_SECONDS}
        doors.append(Door(replace(limits, **short)))
        return doors[-1]

    file = root / "database" / "remix.db"
    folder = root / "sources"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Door", make_door)
        patch.setattr(rooms, "examine", examine_here)
        for module, name, seconds in (
            *((database, f"{what}_SECONDS", _DATABASE_SECONDS) for what in _CALLS),
            (access, "_LOOK_UP_SECONDS", _DATABASE_SECONDS),
            (adapters, "RETRY_SECONDS", 0.05),
            (adapters, "LAST_RETRY_SECONDS", 0.4),
            (watch, "FIRST_PAUSE_SECONDS", 0.05),
            (follower, "_LAST_PAUSE_SECONDS", 0.2),
        ):
            patch.setattr(module, name, seconds)
        apps, settings = make_tenant_apps(
            engine, root, folder, database_url=f"sqlite:///{file}", access_log=False
        )
        apps.data.add_middleware(Counted, books=books)
        async with AsyncExitStack() as stack:
            url = urlsplit(await stack.enter_async_context(listen(apps.data, settings)))
            server = TenantServer(apps, engine, httpx.AsyncClient(), folder, stack)
            server.admin = await server.client(apps.admin, ADMIN_KEY)
            server.services.quotas._clock = lambda: 0.0  # a minute that does not pass
            books.watch(engine)
            address = (str(url.hostname), url.port or 0)
            yield Served(server, address, doors[0], books, file, write_adapter)


async def add_tenant(served: Served, name: str, **quota: Any) -> str:
    """Its key."""
    limits = {"requests_per_minute": LIMIT, "tokens_per_minute": LIMIT, **quota}
    await served.server.succeed("POST", "/tenants", json={"id": name})
    await served.server.succeed("PUT", f"/tenants/{name}/quota", json=limits)
    return await served.server.key(name)
