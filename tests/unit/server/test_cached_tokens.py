"""What is told of the prefix cache, and who shares it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import BASE, Server, serving, sse_events
from tests.unit.server.named_events import message_events

MESSAGES = [{"role": "user", "content": "Hello there"}]
CACHED = 5


@pytest.fixture
async def caching(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path, FakeConfig(cached_tokens=CACHED)) as running:
        yield running


async def post(server: Server, path: str, **body: Any) -> Any:
    answer = await server.client.post(path, json={"model": BASE, "temperature": 0, **body})
    assert answer.status_code == 200, answer.text
    return answer


async def test_the_usage_tells_cached_tokens(caching: Server) -> None:
    told = {"cached_tokens": CACHED}
    for path, body in (
        ("/v1/completions", {"prompt": "Hello there"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ):
        usage = (await post(caching, path, **body)).json()["usage"]
        assert usage["prompt_tokens_details"] == told
        options = {"include_usage": True, "continuous_usage_stats": True}
        stream = await post(caching, path, stream=True, stream_options=options, **body)
        events = sse_events(stream.text)
        assert events[-1]["usage"] == usage
        assert events[-2]["usage"]["prompt_tokens_details"] == told
    usage = (await post(caching, "/v1/responses", input="Hello there")).json()["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == CACHED


async def test_anthropics_usage_tells_them_apart(caching: Server) -> None:
    body = {"messages": MESSAGES, "max_tokens": 3}
    usage = (await post(caching, "/v1/messages", **body)).json()["usage"]
    prompt = len(caching.engine.requests[-1].prompt_token_ids)
    assert usage["cache_read_input_tokens"] == CACHED
    assert usage["input_tokens"] == prompt - CACHED
    stream = await post(caching, "/v1/messages", stream=True, **body)
    events = message_events(stream.text)
    for event in (events[0]["message"], events[-2]):
        assert event["usage"]["cache_read_input_tokens"] == CACHED
        assert event["usage"]["input_tokens"] == prompt - CACHED


async def test_a_prompt_counts_once_however_many_choices_it_has(caching: Server) -> None:
    body = {"prompt": ["Hello there", "Bye", "abc" * 9], "n": 3}
    usage = (await post(caching, "/v1/completions", **body)).json()["usage"]
    # The last token of a prompt is always computed.
    assert usage["prompt_tokens_details"] == {"cached_tokens": CACHED + 2 + CACHED}
    text = (await caching.client.get("/metrics")).text
    labels = f'{{adapter="{BASE}",tenant=""}}'
    assert f"remix_cached_prompt_tokens_total{labels} {CACHED + 2 + CACHED:.1f}" in text
    assert f"remix_prompt_tokens_total{labels} {11 + 3 + 27:.1f}" in text


async def test_an_engine_without_a_prefix_cache_tells_nothing(server: Server) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "Hello"}),
        ("/v1/chat/completions", {"messages": MESSAGES}),
    ):
        usage = (await post(server, path, **body)).json()["usage"]
        assert "prompt_tokens_details" not in usage


@pytest.mark.parametrize("path", ["completions", "chat/completions", "responses", "messages"])
async def test_a_salt_keeps_requests_of_a_tenant_apart(server: Server, path: str) -> None:
    body: dict[str, Any] = {
        "completions": {"prompt": "Hello"},
        "responses": {"input": "Hello"},
        "messages": {"messages": MESSAGES, "max_tokens": 3},
    }.get(path, {"messages": MESSAGES})
    await post(server, f"/v1/{path}", cache_salt="of this user", **body)
    assert server.engine.requests[-1].cache_salt == "of this user"
    await post(server, f"/v1/{path}", **body)
    assert server.engine.requests[-1].cache_salt == ""
    wrong = await server.client.post(f"/v1/{path}", json={"model": BASE, "cache_salt": "", **body})
    assert wrong.status_code == 400
    assert "cache_salt" in wrong.text
