"""Streams that wait get comments; what fails after the first one is told as an event."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from remix_runtime.engines.fake import FakeConfig
from remix_runtime.errors import AdapterUnavailableError, EngineDeadError
from server.api.event_stream import EventStream
from server.live.quotas import Quotas
from server.tenancy.records import Quota
from tests.unit.server.harness import Server, eventually, listening, serving, sse_events

COMMENT = ": waiting\n\n"
SOON = 0.01
SLOW_PREFILL = FakeConfig(prefill_seconds=0.1)


def split(text: str) -> tuple[int, str]:
    """The comments of a stream, and the rest of it."""
    return text.count(COMMENT), text.replace(COMMENT, "")


@pytest.mark.parametrize("chat", [False, True])
async def test_while_it_waits_for_its_first_token(tmp_path: Path, chat: bool) -> None:
    async with serving(tmp_path, SLOW_PREFILL, keep_alive_seconds=SOON) as server:
        answer = await (server.chat if chat else server.complete)(stream=True, max_tokens=5)
        comments, events = split(answer.text)
        assert answer.text.startswith(COMMENT)
        assert comments >= 2
        assert sse_events(events)[-1]["choices"][0]["finish_reason"]


async def test_while_it_waits_between_tokens(tmp_path: Path) -> None:
    config = FakeConfig(token_seconds=0.05)
    async with serving(tmp_path, config, keep_alive_seconds=SOON) as server:
        answer = await server.complete(stream=True, max_tokens=3, ignore_eos=True)
        first, _, rest = answer.text.partition("data: ")
        assert COMMENT in first
        assert COMMENT in rest.partition("data: ")[0]
        assert len(sse_events(split(answer.text)[1])) == 3


async def test_while_it_waits_in_the_queue(tmp_path: Path) -> None:
    config = FakeConfig(max_running=1, token_seconds=0.005)
    async with listening(tmp_path, config, keep_alive_seconds=SOON) as server:
        blocker = asyncio.create_task(server.complete(max_tokens=80, ignore_eos=True))
        await eventually(lambda: server.engine.stats().running == 1)
        body = {"model": "pirate", "prompt": "a", "stream": True, "max_tokens": 2}
        async with server.client.stream("POST", "/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            assert (await anext(answer.aiter_text())).startswith(COMMENT)
            assert server.engine.stats().waiting == 1, "it was told before its turn"
        await blocker


async def test_while_its_adapter_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, keep_alive_seconds=SOON) as server:
        monkeypatch.setattr(server.services.adapters, "load_for_request", sleep_then())
        answer = await server.complete(model="pirate", stream=True, max_tokens=3)
        assert answer.text.startswith(COMMENT)
        assert sse_events(split(answer.text)[1])


def sleep_then(error: Exception | None = None) -> Any:
    async def load(digest: str, tenant: str) -> None:
        await asyncio.sleep(0.05)
        if error is not None:
            raise error

    return load


@pytest.mark.parametrize("chat", [False, True])
async def test_what_fails_after_a_comment_is_an_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool
) -> None:
    async with serving(tmp_path, keep_alive_seconds=SOON) as server:
        late = sleep_then(AdapterUnavailableError("gone"))
        monkeypatch.setattr(server.services.adapters, "load_for_request", late)
        answer = await (server.chat if chat else server.complete)(model="pirate", stream=True)
        assert answer.status_code == 200
        _, events = split(answer.text)
        (event,) = events.removesuffix("\n\n").split("\n\n")
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "model_unavailable"
        monkeypatch.undo()
        metrics = (await server.client.get("/metrics")).text
        assert 'adapter="pirate",tenant="",type="model_unavailable"} 1.0' in metrics
        await server.expect_good_request()


async def test_an_engine_that_dies_while_a_stream_waits(tmp_path: Path) -> None:
    config = FakeConfig(prefill_seconds=60)
    async with listening(tmp_path, config, keep_alive_seconds=SOON) as server:
        body = {"model": "pirate", "prompt": "a", "stream": True}
        async with server.client.stream("POST", "/v1/completions", json=body) as answer:
            chunks = answer.aiter_text()
            await anext(chunks)
            server.engine.kill("the device is gone")
            rest = "".join([chunk async for chunk in chunks])
        assert '"engine_dead"' in rest
        assert EngineDeadError.__name__ not in rest


async def test_what_is_refused_at_once_is_an_http_error(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_alive_seconds=SOON) as server:
        assert (await server.complete(stream=True, model="nobody")).status_code == 404
        assert (await server.complete(stream=True, temperature=9)).status_code == 400
        server.engine.fail_next_after = 0
        assert (await server.complete(stream=True)).status_code == 500


@pytest.mark.parametrize("seconds", [0.0, 60.0])
async def test_nothing_for_those_that_come_soon(tmp_path: Path, seconds: float) -> None:
    async with serving(tmp_path, SLOW_PREFILL, keep_alive_seconds=seconds) as server:
        answer = await server.complete(stream=True, max_tokens=5)
        assert sse_events(answer.text)


async def test_whole_answers_have_no_comments(tmp_path: Path) -> None:
    async with serving(tmp_path, SLOW_PREFILL, keep_alive_seconds=SOON) as server:
        answer = await server.complete(max_tokens=5)
        assert answer.json()["usage"]["completion_tokens"] > 0


async def test_a_client_that_leaves_among_the_comments(tmp_path: Path) -> None:
    config = FakeConfig(prefill_seconds=60)
    async with listening(tmp_path, config, keep_alive_seconds=SOON) as server:
        body = {"model": "pirate", "prompt": "a", "stream": True}
        async with server.client.stream("POST", "/v1/completions", json=body) as answer:
            await anext(answer.aiter_text())
        await eventually(lambda: len(server.engine.aborted) == 1)
        assert server.engine.stats().running == 0


async def test_a_failure_waits_for_a_comment_that_is_on_its_way() -> None:
    """The client gets one status, not the comment's and then the error's."""
    sent: list[str] = []
    sending, go_on = asyncio.Event(), asyncio.Event()

    async def slow_send(message: Any) -> None:
        if not sent:
            sending.set()
            await go_on.wait()
        sent.append(message["type"])

    with Quotas().admit("", Quota()) as admission:
        async with EventStream(slow_send, admission, SOON) as stream:
            await sending.wait()
            asking = asyncio.create_task(stream.has_started())
            await asyncio.sleep(0)
            assert not asking.done()
            go_on.set()
            assert await asking
    assert sent[0] == "http.response.start"
    assert sent.count("http.response.start") == 1


async def test_the_openai_client_reads_past_them(tmp_path: Path) -> None:
    async with serving(tmp_path, SLOW_PREFILL, keep_alive_seconds=SOON) as server:
        client = openai_client(server)
        messages = [{"role": "user", "content": "Hello"}]
        stream = await client.chat.completions.create(
            model="pirate", messages=messages, max_tokens=5, temperature=0, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await server.chat(model="pirate", max_tokens=5, temperature=0)
        assert text == whole.json()["choices"][0]["message"]["content"] != ""


def openai_client(server: Server) -> AsyncOpenAI:
    transport = httpx.ASGITransport(server.app)
    return AsyncOpenAI(
        base_url="http://test/v1",
        api_key="x",
        http_client=httpx.AsyncClient(transport=transport),
    )
