"""A server with tenants on real sockets, that tells what came to it, what it does and what it has
logged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from remix_runtime.contracts import Engine
from server import runner
from server.app import create_tenant_apps
from server.http.connection import BoundedConnection
from server.http.request import ENDPOINTS
from server.runner import bind, url_of
from server.settings import ServerSettings
from tests.unit.server.harness import listen

DATA, ADMIN = "data", "admin"
ADMIN_KEY = "the-key-of-the-operator"
NAMES = ("x", "y")
"""Of the tenants' adapters."""
TURNS = 8
"""Of the event loop, in which whatever has begun to move moves on: a connection that is accepted, a
request whose last byte came, the one behind an answered one."""

Ends = tuple[int, int]
"""The ports of a connection: the server's and the client's."""
_ENDS = "fuzz.ends"
"""In the scope, whose own client is the one that X-Forwarded-For tells of."""


@dataclass
class Asked:
    """A request, as the app sees it."""

    method: str
    path: str
    request_id: str | None
    """As the client sent it."""
    has_body: bool = False
    """The body came to its end."""
    is_receiving: bool = False
    is_over: bool = False

    @property
    def waits(self) -> bool:
        """For the rest of its body."""
        return self.is_receiving and not self.has_body and not self.is_over


@dataclass
class Connection:
    received: int = 0
    is_lost: bool = False
    asked: list[Asked] = field(default_factory=list)
    changes: int = 0
    """Grows before whatever may let it come to a stand: another thread looks at it."""

    @property
    def is_still(self) -> bool:
        """Nothing moves until the client does."""
        return all(asked.is_over or asked.waits for asked in self.asked)


class Record:
    """What came on each connection."""

    def __init__(self) -> None:
        self.generating = 0
        """Requests that the server counts."""
        self._connections: dict[Ends, Connection] = {}

    def of(self, ends: Ends) -> Connection:
        return self._connections.setdefault(ends, Connection())

    def forget(self, ends: Ends) -> None:
        self._connections.pop(ends, None)


class Watching:
    """Middleware that writes requests into a record."""

    def __init__(self, app: ASGIApp, record: Record) -> None:
        self._app, self._record = app, record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = self._record.of(scope[_ENDS])
        ids = [value for name, value in scope["headers"] if name == b"x-request-id"]
        asked = Asked(
            scope["method"],
            scope["path"],
            ids[0].decode("latin-1") if len(ids) == 1 else None,
        )
        connection.asked.append(asked)
        self._record.generating += asked.method == "POST" and asked.path in ENDPOINTS
        connection.changes += 1

        async def watched_receive() -> MutableMapping[str, Any]:
            asked.is_receiving = True
            try:
                message = await receive()
            finally:
                asked.is_receiving = False
            asked.has_body |= not message.get("more_body", False)
            connection.changes += 1
            return message

        try:
            await self._app(scope, watched_receive, send)
        finally:
            connection.changes += 1
            asked.is_over = True


def watched_connection(record: Record) -> type[BoundedConnection]:
    class WatchedConnection(BoundedConnection):
        @property
        def ends(self) -> Ends:
            assert self.server is not None
            assert self.client is not None
            return self.server[1] or 0, self.client[1]

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope[_ENDS] = self.ends  # type: ignore[typeddict-unknown-key]

        def data_received(self, data: bytes) -> None:
            connection = record.of(self.ends)
            connection.changes += 1
            connection.received += len(data)
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            record.of(self.ends).is_lost = True
            super().connection_lost(exc)

    return WatchedConnection


class Errors(logging.Handler):
    """What is logged as an error, by whatever library."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@dataclass
class Target:
    ports: dict[str, int]
    documents: dict[str, dict[str, Any]]
    """The OpenAPI documents."""
    base: str
    max_choices: int
    digests: list[str]
    key: str
    """Of a tenant that may do all that there is."""
    small_key: str
    """Of one that may ask once a minute."""
    revoked_key: str
    key_id: str
    """Of a key of the tenant `victim`, of whom nothing is expected."""
    record: Record
    log: Errors
    loop: asyncio.AbstractEventLoop

    @property
    def adapters(self) -> dict[str, str]:
        """The tenants' set."""
        return dict(zip(NAMES, self.digests, strict=True))

    def pass_turns(self) -> None:
        """From another thread."""
        asyncio.run_coroutine_threadsafe(_turns(), self.loop).result()


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(
    root: Path,
    engine: Engine,
    write_adapter: Callable[[Path, int], object],
    patch: pytest.MonkeyPatch,
    *,
    database: str | None = None,
    wrap: Callable[[FastAPI], None] = lambda _: None,
    **settings: Any,
) -> AsyncIterator[Target]:
    """`wrap` may add middlewares to the app of the tenants."""
    record, log, sources = Record(), Errors(), root / "sources"
    for seed in range(len(NAMES)):
        write_adapter(sources / f"adapter-{seed}", seed)
    given = {"admin_key": ADMIN_KEY, "import_root": sources, "log_level": "error", "port": 0}
    # What a request leaves behind, of its tenant's places or of the room for bodies, soon lacks.
    limits = {"max_body_bytes": 1 << 20, "bodies_bytes": 2 << 20, "default_max_tokens": 16}
    server_settings = ServerSettings(
        **{**given, **limits, **({"database_url": database} if database else {}), **settings}
    )
    apps = create_tenant_apps(engine, server_settings, root / "data")
    wrap(apps.data)
    for app in (apps.data, apps.admin):
        app.add_middleware(Watching, record=record)
    patch.setattr(runner, "BoundedConnection", watched_connection(record))
    logging.getLogger().addHandler(log)
    try:
        with bind("127.0.0.1", 0) as listener:
            async with (
                listen(apps.data, server_settings, admin=(apps.admin, listener)) as url,
                httpx.AsyncClient(
                    base_url=f"{url_of(listener)}/admin/v1",
                    headers={"Authorization": f"Bearer {ADMIN_KEY}"},
                    timeout=600,
                ) as admin,
            ):
                made = await _make_tenants(admin, server_settings.max_choices)
                yield Target(
                    ports={DATA: int(url.rpartition(":")[2]), ADMIN: listener.getsockname()[1]},
                    documents={
                        name: json.loads(json.dumps(app.openapi()))
                        for name, app in ((DATA, apps.data), (ADMIN, apps.admin))
                    },
                    base=engine.model.name,
                    max_choices=server_settings.max_choices,
                    record=record,
                    log=log,
                    loop=asyncio.get_running_loop(),
                    **made,
                )
    finally:
        logging.getLogger().removeHandler(log)


async def _make_tenants(admin: httpx.AsyncClient, max_choices: int) -> dict[str, Any]:
    async def ask(method: str, path: str, body: Any = None) -> Any:
        answer = await admin.request(method, path, json=body)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    digests = [
        (await ask("POST", "/adapters", {"source": f"adapter-{seed}"}))["digest"]
        for seed in range(len(NAMES))
    ]
    quotas = {
        "acme": {"may_use_base": True, "max_concurrent": max_choices},
        "small": {"may_use_base": True, "requests_per_minute": 1},
        "victim": {},
    }
    keys = {}
    for tenant, quota in quotas.items():
        await ask("POST", "/tenants", {"id": tenant})
        await ask("PUT", f"/tenants/{tenant}/quota", quota)
        await ask(
            "PUT", f"/tenants/{tenant}/set", {"adapters": dict(zip(NAMES, digests, strict=True))}
        )
        keys[tenant] = await ask("POST", f"/tenants/{tenant}/keys")
    revoked = await ask("POST", "/tenants/acme/keys")
    await ask("DELETE", f"/tenants/acme/keys/{revoked['id']}")
    return {
        "digests": digests,
        "key": keys["acme"]["secret"],
        "small_key": keys["small"]["secret"],
        "revoked_key": revoked["secret"],
        "key_id": keys["victim"]["id"],
    }
