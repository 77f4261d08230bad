"""Canaries over HTTP: their share of requests, what becomes of those that they fail, and how one
server or two promote them and roll them back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest

from remix_runtime import watch
from remix_runtime.contracts import AdapterInfo, GenerationRequest, TokenEvent
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import (
    AdapterUnavailableError,
    EngineBusyError,
    ParityError,
    ReplicaLostError,
)
from server.live import canary_keeper
from server.live.canary.figures import Figures
from server.tenancy.errors import DatabaseUnavailableError
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


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_keeper, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(canary_keeper, "REPORT_SECONDS", 0.0)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path) as made:
        await acme(made)
        yield made


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


async def test_a_share_of_the_users_gets_it_and_each_stays_on_its_side(server: Server) -> None:
    live, new = await server.adapter(0), await begin(server, share=0.25)
    first = await server.digests_of(80)
    assert set(first) == {live, new}
    assert 8 <= first.count(new) <= 32
    assert await server.digests_of(80) == first
    assert (server.seen.canary.requests, server.seen.live.requests) == (
        2 * first.count(new),
        2 * first.count(live),
    )


async def test_it_is_promoted_within_the_bounds_as_a_revision_like_any_other(
    server: Server,
) -> None:
    new = await begin(server, **QUICK)
    await server.digests_of(60)
    ended = await server.ended()
    assert (ended["state"], ended["digest"]) == ("promoted", new)
    assert "within the bounds" in ended["reason"]
    assert ended["figures"]["canary"]["requests"] >= 20
    shown = await server.succeed("GET", "/tenants/acme/set")
    assert (shown["adapters"], shown["revision"], shown["live_revision"]) == ({"x": new}, 2, 2)
    assert set(await server.digests_of(10)) == {new}
    await server.succeed("POST", "/tenants/acme/set/rollback", json={"revision": 1})


APIS = ["/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", APIS)
async def test_what_it_fails_the_live_adapter_answers_and_it_is_rolled_back(
    server: Server, path: str, stream: bool
) -> None:
    live, new = await server.adapter(0), await begin(server, share=1.0)
    server.engine.broken[new] = RuntimeError("broken")
    for _ in range(6):
        answer = await server.ask(path, stream=stream)
        assert answer.status_code == 200
        assert "error" not in answer.text.replace('"error":null', "")
        assert new not in answer.text
        assert live in answer.text or path == "/v1/messages"
    ended = await server.ended()
    assert ended["state"] == "rolled_back"
    assert "requests failed" in ended["reason"]
    assert ended["figures"]["canary"]["failures"] >= 2
    assert (await server.succeed("GET", "/tenants/acme/set"))["revision"] == 1


async def test_a_replica_that_is_lost_is_no_fault_of_the_canary(server: Server) -> None:
    live, new = await server.adapter(0), await begin(server, share=1.0)
    server.engine.broken[new] = ReplicaLostError("gone")
    assert await server.digests_of(6) == [live] * 6
    assert server.seen.canary.requests == 0
    del server.engine.broken[new]
    assert await server.digests_of(1) == [new]


async def test_a_whole_answer_is_the_live_adapter_s_however_late_the_canary_fails(
    server: Server,
) -> None:
    live, new = await server.adapter(0), await begin(server, share=1.0)
    server.engine.broken[new], server.engine.after = RuntimeError("broken"), 2
    answer = await server.ask(temperature=0, ignore_eos=True)
    assert answer.json()["system_fingerprint"] == live
    assert answer.json()["usage"]["completion_tokens"] == 4
    # Of a stream the client has seen the beginning.
    streamed = await server.ask(temperature=0, ignore_eos=True, stream=True)
    assert "internal_error" in streamed.text
    assert (server.seen.canary.requests, server.seen.canary.failures) == (2, 2)


@pytest.mark.parametrize("path", APIS)
async def test_a_stream_of_comments_alone_ends_with_what_the_live_adapter_was_refused_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with serving(tmp_path, keep_alive_seconds=0.01) as server:
        live, _ = await acme(server)
        new = await begin(server, share=1.0)

        async def fail(_: str) -> None:
            await asyncio.sleep(0.1)  # until there are comments
            defaults = AsyncMock(side_effect=AdapterUnavailableError("gone", digest=live))
            monkeypatch.setattr(server.services.adapters, "defaults", defaults)

        server.engine.before[new] = fail
        server.engine.broken[new] = RuntimeError("broken")
        answer = await server.ask(path, stream=True)
        assert answer.text.startswith(": waiting")
        assert "not available on this server at the moment" in answer.text.splitlines()[-2]


async def test_an_answer_is_paid_once(server: Server) -> None:
    new = await begin(server, share=1.0)
    server.engine.broken[new], server.engine.after = RuntimeError("broken"), 2
    quota = {"tokens_per_minute": 1000, "requests_per_minute": 10}
    await server.succeed("PUT", "/tenants/acme/quota", json=quota)
    await server.ask(temperature=0, ignore_eos=True, prompt=[65] * 100)
    answer = await server.ask(prompt="H", max_tokens=1)
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) >= 1000 - 104 - 30
    assert int(answer.headers["x-ratelimit-remaining-requests"]) == 8


async def test_who_may_ask_once_is_answered_though_the_canary_fails(server: Server) -> None:
    """What its attempt had reserved is there for the live adapter's, and text that both tokenize
    is paid once."""
    new = await begin(server, share=1.0)
    server.engine.broken[new], server.engine.after = RuntimeError("broken"), 2
    quota = {"tokens_per_minute": 204}
    await server.succeed("PUT", "/tenants/acme/quota", json=quota)
    answer = await server.ask(temperature=0, ignore_eos=True, prompt="H" * 200)
    assert answer.status_code == 200, answer.text
    refused = await server.ask(prompt="H" * 200)
    assert refused.status_code == 429
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) < 10


async def test_neither_mistakes_of_clients_nor_a_full_queue_are_its_failures(
    server: Server,
) -> None:
    new = await begin(server, share=1.0)
    assert (await server.ask(max_tokens=0, min_tokens=5)).status_code == 400
    server.engine.broken[new] = EngineBusyError("full")
    assert (await server.ask()).status_code == 503
    assert server.seen.canary.requests == 0


async def test_a_fault_that_both_have_is_told_and_counted_once(server: Server) -> None:
    live, new = await server.adapter(0), await begin(server, share=1.0)
    for digest in (live, new):
        server.engine.broken[digest] = RuntimeError("broken")
    assert (await server.ask()).status_code == 500
    assert (server.seen.canary.failures, server.seen.live.requests) == (1, 0)


async def test_a_slow_one_is_rolled_back(server: Server) -> None:
    await begin(server, **SLOW)
    for _ in range(40):
        server.seen.live.first.add(0.1)
        server.seen.canary.first.add(1.0)
    ended = await server.ended()
    assert ended["state"] == "rolled_back"
    assert "first token: 40 of 40 requests took longer than" in ended["reason"]


async def test_one_that_was_stopped_is_rolled_back_though_its_figures_are_good_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait that was counted as if it ended may come to nothing while the database is away."""
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.01)
    live, _ = await server.adapter(0), await begin(server, share=1.0)
    canaries = server.apps.admin.state.services.directory.canaries
    seen, end = server.seen, canaries.end

    async def away(*_: object, **__: object) -> None:
        seen.canary.requests = seen.canary.failures = 0
        monkeypatch.setattr(canaries, "end", end)
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(canaries, "end", away)
    seen.canary.requests = seen.canary.failures = 10
    ended = await server.ended()
    assert (ended["state"], ended["reason"][:27]) == ("rolled_back", "10 of 10 requests failed, 0")
    assert set(await server.digests_of(2)) == {live}


async def test_by_hand_it_ends_at_once_and_a_second_time_changes_nothing(server: Server) -> None:
    live, _ = await server.adapter(0), await begin(server, **SLOW)
    ended = await server.succeed("DELETE", f"{PATH}?name=x")
    assert (ended["state"], ended["reason"]) == ("rolled_back", "by hand")
    assert set(await server.digests_of(10)) == {live}
    assert await server.succeed("DELETE", f"{PATH}?name=x") == ended
    rows = (await server.succeed("GET", "/audit?tenant=acme&limit=1"))["data"]
    assert (rows[0]["action"], rows[0]["actor"]) == ("canary.rolled_back", "admin")


async def test_a_change_of_the_set_ends_it(server: Server) -> None:
    third, _ = await server.adapter(2), await begin(server, **SLOW)
    await server.put("acme", {"x": third})
    assert (await server.canary())["state"] == "superseded"
    assert set(await server.digests_of(10)) == {third}


async def test_what_is_refused(server: Server) -> None:
    live, new = await server.adapter(0), await server.adapter(1)

    async def status(method: str = "PUT", path: str = PATH, **body: Any) -> int:
        given = {"name": "x", "digest": new, **body} if method == "PUT" else None
        answer = await server.admin.request(method, f"/admin/v1{path}", json=given)
        assert answer.json()["error"]["message"]
        return answer.status_code

    assert await status(digest=live) == 409
    assert await status(name="z") == 409
    assert await status(digest="d" * 64) == 422
    assert await status(digest="d") == await status(name="a/b") == 400
    assert await status(share=0) == await status(share=1.1) == await status(other=1) == 400
    assert await status(max_token_ratio=0.9) == await status(bake_requests=0) == 400
    assert await status(path="/tenants/nobody/canary") == 404
    assert await status("GET", "/tenants/nobody/canary") == 404
    assert await status("DELETE", f"{PATH}?name=x") == 404
    assert await status("DELETE") == 400
    server.engine.refused.add(new)
    assert await status() == 422
    assert (await server.succeed("GET", PATH))["data"] == []


async def test_a_dry_run_loads_it_and_changes_nothing_and_the_same_again_is_no_change(
    server: Server,
) -> None:
    body = {"name": "x", "digest": await server.adapter(1), **SLOW}
    answers = [
        await server.admin.put(f"/admin/v1{PATH}{query}", json=body)
        for query in ("?dry_run=true", "", "", "?dry_run=true")
    ]
    assert [answer.status_code for answer in answers] == [200, 201, 200, 200]
    assert len({answer.json()["id"] for answer in answers[1:]}) == 1
    rows = (await server.succeed("GET", "/audit?tenant=acme"))["data"]
    assert [row["action"] for row in rows].count("canary.begin") == 1


async def test_series_by_arm_are_there_while_it_runs(server: Server) -> None:
    await begin(server, share=0.25)
    await server.digests_of(20)

    async def series() -> list[str]:
        text = (await server.admin.get("/metrics")).text
        return [line for line in text.splitlines() if line.startswith("remix_canary_")]

    arms = {f'{{adapter="x",arm="{arm}",tenant="acme"}}' for arm in ("canary", "live")}
    found = await series()
    for name in ("requests_total", "failures_total", "first_token_seconds", "token_seconds"):
        labels = {line.split(" ")[0].removeprefix(f"remix_canary_{name}") for line in found}
        assert arms <= labels, name
    assert 'remix_canary_share{adapter="x",tenant="acme"} 0.25' in found
    await server.succeed("DELETE", f"{PATH}?name=x")
    assert await series() == []


async def test_two_servers_decide_by_what_both_have_seen(tmp_path: Path, url: str) -> None:
    """Neither has enough requests for itself."""
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        await acme(here)
        there.key_of_acme = here.key_of_acme
        new = await begin(here, share=1.0, bake_seconds=0, bake_requests=20)
        canaries = there.services.sets.canaries
        await eventually(lambda: canaries.find("acme", "x") is not None)
        await here.digests_of(12)
        assert (await here.canary())["waits_for"] == "12 of 20 requests"
        assert set(await there.digests_of(12)) == {new}
        for server in (here, there):
            ended = await server.ended()
            assert ended["state"] == "promoted"
            assert ended["figures"]["canary"]["requests"] == 24
        await eventually(lambda: there.services.sets.live("acme").adapters == {"x": new})


async def test_one_server_s_failures_are_the_other_s_too(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        live, _ = await acme(here)
        there.key_of_acme = here.key_of_acme
        new = await begin(here, share=1.0)
        there.engine.broken[new] = RuntimeError("broken")
        canaries = there.services.sets.canaries
        await eventually(lambda: canaries.find("acme", "x") is not None)
        assert set(await there.digests_of(6)) == {live}
        for server in (here, there):
            assert (await server.ended())["state"] == "rolled_back"
        assert set(await here.digests_of(3)) == {live}


async def test_one_that_another_server_cannot_load_is_rolled_back(tmp_path: Path, url: str) -> None:
    async with serving(tmp_path, url, "a") as here, serving(tmp_path, url, "b") as there:
        live, new = await acme(here)
        there.key_of_acme = here.key_of_acme
        there.engine.refused.add(new)
        await begin(here, share=1.0)
        ended = await here.ended()
        assert ended["state"] == "rolled_back"
        assert "a server cannot load it" in ended["reason"]
        assert set(await there.digests_of(3)) == {live}


async def test_a_server_that_is_started_again_goes_on_with_what_it_had_seen(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        await acme(server)
        key = server.key_of_acme
        new = await begin(server, share=1.0, bake_seconds=0, bake_requests=20)
        await server.digests_of(15)
        reports = server.apps.admin.state.services.directory.canaries.reports
        (running,) = server.services.sets.canaries.all
        ident = running.record.id

        async def told() -> int:
            return sum(r["canary"]["requests"] for r in (await reports([ident]))[ident].values())

        while await told() < 15:
            pass
    async with serving(tmp_path) as server:
        server.key_of_acme = key
        assert (await server.canary())["figures"]["canary"]["requests"] == 15
        await eventually(lambda: server.services.sets.canaries.find("acme", "x") is not None)
        assert set(await server.digests_of(8)) == {new}
        ended = await server.ended()
        assert ended["state"] == "promoted"
        assert ended["figures"]["canary"]["requests"] >= 20
