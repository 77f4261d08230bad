"""A server with a tenant whose adapter may have a canary; its engine fails where a test says so."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from remix_runtime.contracts import AdapterInfo, GenerationRequest, TokenEvent
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import (
    ParityError,
)
from server.live.canary.figures import Figures
from tests.unit.server.harness import eventually
from tests.unit.server.tenants import ADMIN_KEY, TenantServer, make_tenant_apps

PATH = "/tenants/acme/canary"
QUICK = {"bake_seconds": 0, "bake_requests": 20, "share": 0.5}
SLOW = {"share": 0.5}


class FragileEngine(FakeEngine):
    """Fails for digests in `broken` after `after` tokens, and cannot load those in `refused`."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: dict[str, Exception] = {}
        self.refused: set[str] = set()
        self.after = 0
        self.before: dict[str, Callable[[str], Awaitable[None]]] = {}
        """By digest, what is done before anything is generated."""

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        digest = request.digest or ""
        if digest in self.before:
            await self.before[digest](digest)
        error = self.broken.get(digest)
        if error is not None and not self.after:
            raise error
        count = 0
        async for event in super().generate(request):
            yield event
            count += len(event.token_ids)
            if error is not None and count >= self.after:
                raise error

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        if digest in self.refused:
            raise ParityError("replayed to other routes")
        return await super().load_adapter(folder, digest)


class Server(TenantServer):
    engine: FragileEngine
    key_of_acme: str

    async def ask(self, path: str = "/v1/completions", **body: Any) -> httpx.Response:
        client = await self.client(key=self.key_of_acme)
        shared = {"model": "x", "max_tokens": 4}
        if path == "/v1/completions":
            shared |= {"prompt": "Hello"}
        elif path == "/v1/responses":
            shared = {"model": "x", "max_output_tokens": 16, "input": "Hello"}
        else:
            shared |= {"messages": [{"role": "user", "content": "Hello"}]}
        return await client.post(path, json={**shared, **body})

    async def digests_of(self, requests: int) -> list[str]:
        """What answered requests of so many users."""
        answers = [await self.ask(user=str(number)) for number in range(requests)]
        return [answer.raise_for_status().json()["system_fingerprint"] for answer in answers]

    async def canary(self) -> Any:
        return (await self.succeed("GET", PATH))["data"][0]

    async def ended(self) -> Any:
        await eventually(lambda: not self.services.sets.canaries.all)
        return await self.canary()

    @property
    def seen(self) -> Figures:
        (running,) = self.services.sets.canaries.all
        return running.seen


@asynccontextmanager
async def serving(
    root: Path, url: str | None = None, name: str = "a", **settings: Any
) -> AsyncIterator[Server]:
    """A server with a folder of its own; all of them import from one."""
    engine = FragileEngine()
    (root / name).mkdir(exist_ok=True)
    if url is not None:
        settings["database_url"] = url
    apps, _ = make_tenant_apps(engine, root / name, root / "adapters", **settings)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(apps.data.router.lifespan_context(apps.data))
        server = Server(apps, engine, httpx.AsyncClient(), root / "adapters", stack)
        server.admin = await server.client(apps.admin, ADMIN_KEY)
        yield server


async def acme(server: Server) -> tuple[str, str]:
    """A tenant whose x is the first adapter. The second one may be its canary."""
    await server.succeed("POST", "/tenants", json={"id": "acme"})
    server.key_of_acme = await server.key("acme")
    live, new = await server.adapter(0), await server.adapter(1)
    await server.put("acme", {"x": live})
    return live, new


async def begin(server: Server, **rules: Any) -> str:
    """Returns the canary's digest."""
    digest = await server.adapter(1)
    await server.succeed("PUT", PATH, json={"name": "x", "digest": digest, **rules})
    return digest


APIS = ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"]
