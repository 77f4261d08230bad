"""`/health` and `/ready` tell of the server's own tasks: by name what fails, by status what no
request can do without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from remix_runtime.watch import TELL_SECONDS, Watch, Watched
from server import runner
from server.live.follower import DIRECTORY_TASK
from server.runner import ADMIN_SIGN_SECONDS, ADMIN_TASK, AdminServer, bind, url_of
from server.settings import ServerSettings
from tests.clocks import FakeClock
from tests.unit.server.harness import Server, eventually
from tests.unit.server.tenants import TenantServer, complete, tenant_serving

PROBES = ("/health", "/ping", "/ready")
GRACE = 300.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def tenants(
    tmp_path: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TenantServer]:
    monkeypatch.setattr("server.app.Watch", lambda: Watch(clock))
    async with tenant_serving(tmp_path, key_grace_seconds=GRACE) as server:
        yield server


async def told(client: httpx.AsyncClient, path: str) -> tuple[int, Any]:
    answer = await client.get(path)
    return answer.status_code, answer.json()


async def test_a_follower_that_fails_is_named_and_then_refuses_requests(
    tenants: TenantServer, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await tenants.tenant("acme", may_use_base=True)
    (following,) = (t for t in tenants.services.watch._tasks if t.name == DIRECTORY_TASK)

    def broken(poll_seconds: float) -> Any:
        raise OSError("too many open files in /secret")

    async def rests() -> None:
        await eventually(lambda: following._task is None)

    # One look may be under way, and the next one is the last that is well.
    monkeypatch.setattr(tenants.apps.admin.state.services.directory, "changes", broken)
    assert following._task is not None
    following._task.cancel()
    await rests()
    for path in PROBES:
        assert await told(client, path) == (200, {"status": "ready" if path == "/ready" else "ok"})
    began = clock.now
    while clock.now < began + TELL_SECONDS:
        await clock.advance(1)
        await rests()
    failing = [DIRECTORY_TASK]
    assert await told(client, "/health") == (200, {"status": "ok", "failing": failing})
    assert await told(client, "/ready") == (200, {"status": "ready", "failing": failing})
    assert "remix_tasks_failing 1.0" in (await tenants.admin.get("/metrics")).text
    assert (await client.post("/v1/completions", json=complete("fake-base"))).status_code == 200

    while clock.now <= began + GRACE:
        await clock.advance(1)
        await rests()
    wanted = {"status": "keys cannot be confirmed", "failing": failing}
    assert await told(client, "/ready") == (503, wanted)
    assert (await told(client, "/health"))[0] == 200  # a new process would know no more
    assert (await client.post("/v1/completions", json=complete("fake-base"))).status_code == 503

    monkeypatch.undo()
    while tenants.services.watch.failing:
        await clock.advance(1)
        await eventually(lambda: following._task is None or not following.is_failing)
    assert await told(client, "/ready") == (200, {"status": "ready"})
    assert "remix_tasks_failing 0.0" in (await tenants.admin.get("/metrics")).text
    assert (await client.post("/v1/completions", json=complete("fake-base"))).status_code == 200


async def test_one_tenants_set_takes_no_server_out_of_service(
    tenants: TenantServer, clock: FakeClock
) -> None:
    """Names of tenants and reasons are for the log: who asks may be anybody."""
    client = await tenants.client()

    async def fail(task: Watched) -> None:
        raise OSError("/secret/acme")

    following, watch = "loading revision 7 of the set of acme", tenants.services.watch
    task = watch.start("sets", fail, what=following, due_seconds=1)
    await clock.advance(TELL_SECONDS)
    assert (await told(client, "/ready"))[0] == 200
    body = (await client.get("/ready")).json()
    assert "sets" in body["failing"]
    assert "acme" not in str(body)
    task.cancel()
    assert "sets" not in (await client.get("/ready")).json().get("failing", [])


async def test_a_server_without_tenants_has_the_series_too(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "remix_tasks_failing 0.0" in (await server.client.get("/metrics")).text
    health = replace(server.engine.health(), failing=("expert load",))
    monkeypatch.setattr(server.engine, "health", lambda: health)
    wanted = {"status": "ready", "failing": ["expert load"]}
    assert await told(server.client, "/ready") == (200, wanted)
    assert "remix_tasks_failing 1.0" in (await server.client.get("/metrics")).text


class Beside:
    """The admin API's server around an app that answers, and what it can meet."""

    def __init__(self, clock: FakeClock) -> None:
        self.watch = Watch(clock)
        app = FastAPI()

        @app.get("/")
        async def answer() -> str:
            return "here"

        listener = bind("127.0.0.1", 0)
        self.url = url_of(listener)
        settings = ServerSettings(port=0, log_level="error")
        limits = runner._limits(settings, 1024, servers=2)
        self.server = AdminServer(app, listener, settings, limits=limits)

    async def answers(self) -> bool:
        async with httpx.AsyncClient(timeout=60) as client:
            return (await client.get(self.url)).json() == "here"

    def kill(self) -> None:
        assert self.server._watched is not None
        assert self.server._watched._task is not None
        self.server._watched._task.cancel()


@pytest.mark.parametrize("trouble", ["killed", "failing", "ending", "hanging"])
async def test_the_admin_api_comes_back(
    trouble: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = Beside(clock)
    beside.server.start(beside.watch)
    assert await beside.answers()

    async def broken(self: uvicorn.Server, sockets: Any) -> None:
        for socket in sockets:
            socket.close()
        if trouble == "failing":
            raise OSError("too many open files")
        if trouble == "hanging":
            await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        if trouble != "killed":
            patch.setattr(runner._SilentServer, "serve", broken)
        beside.kill()
        await eventually(lambda: len(asyncio.all_tasks()) == 1)
        await clock.advance(TELL_SECONDS + (ADMIN_SIGN_SECONDS if trouble == "hanging" else 0))
        assert beside.watch.failing == (() if trouble == "killed" else (ADMIN_TASK,))
    await clock.advance(ADMIN_SIGN_SECONDS)
    assert await beside.answers()
    await eventually(lambda: beside.watch.failing == ())
    await beside.server.stop()
    with pytest.raises(httpx.ConnectError):
        await beside.answers()
