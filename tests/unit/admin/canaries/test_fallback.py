"""What becomes of requests that a canary fails: the live adapter answers them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from remix_runtime.errors import (
    AdapterUnavailableError,
    EngineBusyError,
    ReplicaLostError,
)
from tests.unit.admin.canaries.harness import APIS, Server, acme, begin, serving


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
