"""`/v1/messages`: what it takes and what it answers, also when it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic.types as wire
import httpx
import pytest

from remix_runtime.engines.fake import FakeConfig
from tests.unit.server.harness import ADAPTERS, BASE, Server, greedy_text, serving
from tests.unit.server.named_events import message_events
from tests.unit.server.scripted import scripted
from tests.unit.server.tenants import tenant_serving

HELLO = [{"role": "user", "content": "Hello"}]


async def message(client: httpx.AsyncClient, path: str = "", **body: Any) -> httpx.Response:
    given = {"model": BASE, "messages": HELLO, **body}
    if not path:
        given = {"temperature": 0, "max_tokens": 8, **given}
    return await client.post(f"/v1/messages{path}", json=given)


async def answered(server: Server, **body: Any) -> dict[str, Any]:
    answer = await message(server.client, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    wire.Message.model_validate(found)
    return found


async def test_an_answer(server: Server) -> None:
    text, _ = await greedy_text(server.engine, "user: Hello\nassistant: ", 8)
    answer = await answered(server, metadata={"user_id": "u"}, service_tier="auto")
    assert answer["content"] == [{"type": "text", "text": text, "citations": []}]
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("max_tokens", None)
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (len("user: Hello\nassistant: "), 8)
    assert answer["system_fingerprint"] == f"base-{BASE}"


async def test_a_stream_tells_the_same(server: Server) -> None:
    answer = await answered(server)
    events = message_events((await message(server.client, stream=True)).text)
    types = [event["type"] for event in events]
    assert types[:3] == ["message_start", "ping", "content_block_start"]
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(types[3:-3]) == {"content_block_delta"}
    started = events[0]["message"]
    assert (started["content"], started["stop_reason"]) == ([], None)
    assert started["usage"]["input_tokens"] == answer["usage"]["input_tokens"]
    assert "".join(event["delta"]["text"] for event in events[3:-3]) == answer["content"][0]["text"]
    assert events[-2]["delta"]["stop_reason"] == answer["stop_reason"]
    assert events[-2]["usage"] == answer["usage"]


async def test_the_end_of_a_turn() -> None:
    async with scripted(script="Well.") as server:
        answer = await answered(server)
        assert (answer["stop_reason"], answer["content"][0]["text"]) == ("end_turn", "Well.")


@pytest.mark.parametrize(
    ("stops", "text", "stop"),
    [(["ll.", "x"], "We", "ll."), (["nowhere"], "Well.", None), ([".", "l."], "Wel", "l.")],
)
async def test_stop_sequences_are_told(stops: list[str], text: str, stop: str | None) -> None:
    async with scripted(script="Well.") as server:
        answer = await answered(server, stop_sequences=stops)
        streamed = await message(server.client, stop_sequences=stops, stream=True)
    events = message_events(streamed.text)
    assert [block["text"] for block in answer["content"]] == [text]
    reason = "end_turn" if stop is None else "stop_sequence"
    assert (answer["stop_reason"], answer["stop_sequence"]) == (reason, stop)
    assert "".join(e["delta"]["text"] for e in events if "delta" in e and "index" in e) == text
    assert (events[-2]["delta"]["stop_reason"], events[-2]["delta"]["stop_sequence"]) == (
        reason,
        stop,
    )


async def test_a_last_turn_of_the_assistant_is_continued(server: Server) -> None:
    await answered(server, messages=[*HELLO, {"role": "assistant", "content": "I am"}])
    assert server.prompt == "user: Hello\nassistant: I am"


async def test_a_failure_in_a_stream_is_an_error_event(server: Server) -> None:
    server.engine.fail_next_after = 2
    events = message_events((await message(server.client, stream=True)).text)
    assert events[-1]["error"]["type"] == "api_error"
    assert events[-1]["request_id"]
    assert "secret" not in json.dumps(events)


async def test_messages_become_a_chat(server: Server) -> None:
    await answered(
        server,
        system=[
            {"type": "text", "text": "Be kind.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be short."},
        ],
        messages=[
            {"role": "user", "content": "One"},
            {"role": "user", "content": [{"type": "text", "text": "Two", "citations": None}]},
            {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]},
            {"role": "assistant", "content": "Three"},
            {"role": "user", "content": "Four"},
        ],
    )
    assert server.prompt == (
        "system: Be kind.\nBe short.\nuser: One\nTwo\nassistant: Three\nuser: Four\nassistant: "
    )


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "user", "content": list(content)}]}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": None}, "max_tokens"),
    ({"temperature": 1.5}, "temperature"),
    ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0].content"),
    ({"messages": [{"role": "critic", "content": "a"}]}, "messages[0].role"),
    (user({"type": "text", "text": "a"}, {"type": "image"}), "messages[1].content[1].type"),
    (user({"type": "document"}), "messages[1].content[0].type"),
    (user({"type": "text"}), "messages[1].content[0].text"),
    (user("text"), "messages[1].content[0]"),
    (
        user({"type": "tool_use", "id": "a", "name": "b", "input": {}}),
        "messages[1].content[0].type",
    ),
    (user({"type": "thinking", "thinking": "Hm"}), "messages[1].content[0].type"),
    (
        {
            "messages": [
                {"role": "assistant", "content": [{"type": "tool_result", "tool_use_id": "a"}]},
                *HELLO,
            ]
        },
        "messages[0].content[0].type",
    ),
    (
        user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}),
        "messages[1].content[0].content[0].type",
    ),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0].type"),
    ({"tools": [{"name": "w"}]}, "tools[0].input_schema"),
    ({"tool_choice": {"type": "tool"}}, "tool_choice"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "adaptive", "budget_tokens": 2000}}, "thinking.budget_tokens"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"thinking": {"type": "disabled", "depth": 1}}, "thinking.depth"),
    ({"output_config": {"words": 5}}, "output_config.words"),
    (
        {"output_config": {"format": {"type": "json_schema", "schema": {}, "strict": True}}},
        "output_config.format.strict",
    ),
    ({"tool_choice": {"type": "any", "mode": "all"}}, "tool_choice.mode"),
    ({"stop": ["x"]}, "stop"),
    ({"mcp_servers": [{"name": "x"}]}, "mcp_servers"),
    ({"context_management": {"edits": [1]}}, "context_management"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"top_k": "many"}, "top_k"),
    ({"n": 2}, "n"),
    ({"unheard_of": 1}, "unheard_of"),
    (
        {"tools": [{"name": "w", "input_schema": {}, "defer_loading": True}]},
        "tools[0].defer_loading",
    ),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[json.dumps(body)[:60] for body, _ in WRONG])
async def test_errors_name_what_the_client_sent(
    server: Server, body: dict[str, Any], param: str
) -> None:
    answer = await message(server.client, **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert error["error"]["message"].startswith(f"{param}: "), error
    assert server.engine.requests == []


async def test_every_status_has_anthropics_shape(tmp_path: Path) -> None:
    config = FakeConfig(max_model_len=64)
    async with serving(tmp_path, config, api_key="sesame-open", max_body_bytes=1024) as server:
        client, key = server.client, {"x-api-key": "sesame-open"}

        async def kind(status: int, answer: httpx.Response) -> str:
            assert answer.status_code == status, answer.text
            body = answer.json()
            assert set(body) == {"type", "error", "request_id"}
            assert body["type"] == "error"
            assert body["error"]["message"]
            assert body["request_id"] == answer.headers["x-request-id"]
            return str(body["error"]["type"])

        assert await kind(401, await message(client)) == "authentication_error"
        client.headers.update(key)
        assert await kind(404, await message(client, model="nobody")) == "not_found_error"
        assert await kind(413, await message(client, system="x" * 1900)) == "request_too_large"
        wrong_type = await client.post("/v1/messages", content="{}")
        assert await kind(415, wrong_type) == "invalid_request_error"
        assert await kind(405, await client.get("/v1/messages")) == "invalid_request_error"
        assert await kind(404, await client.get("/v1/messages/batches")) == "not_found_error"
        too_long = await message(client, messages=[{"role": "user", "content": "x" * 90}])
        assert await kind(400, too_long) == "invalid_request_error"
        server.engine.fail_next_after = 0
        assert await kind(500, await message(client)) == "api_error"
        server.engine.kill("over")
        assert await kind(503, await message(client)) == "overloaded_error"
        # Other paths have OpenAI's.
        assert "request_id" not in (await client.get("/v1/message")).json()


async def test_over_the_quota(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("a", may_use_base=True, requests_per_minute=1)
        assert (await message(client)).status_code == 200
        refused = await message(client)
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) > 0


async def test_counting_tokens(server: Server) -> None:
    body = {"system": "Be kind.", "messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}
    body["messages"] = [*body["messages"], {"role": "user", "content": "So?"}]
    counted = await message(server.client, "/count_tokens", **body)
    assert counted.json() == {
        "input_tokens": (await answered(server, **body))["usage"]["input_tokens"]
    }
    assert len(server.engine.requests) == 1
    unknown = await message(server.client, "/count_tokens", model="nobody")
    assert (unknown.status_code, unknown.json()["type"]) == (404, "error")


KEYS: list[tuple[list[tuple[str, str]], bool]] = [
    ([("x-api-key", "sesame-open")], True),
    ([("x-api-key", "sesame-open"), ("authorization", "Bearer sesame-open")], True),
    ([("x-api-key", "wrong")], False),
    ([("x-api-key", "")], False),
    ([("x-api-key", "sesame-open"), ("authorization", "Bearer wrong")], False),
    ([("x-api-key", "wrong"), ("authorization", "Bearer sesame-open")], False),
    ([("x-api-key", "sesame-open"), ("authorization", "Basic c2VzYW1l")], False),
    ([("x-api-key", "sesame-open"), ("x-api-key", "sesame-open")], False),
    ([("x-api-key", "sesame-open"), ("x-api-key", "wrong")], False),
]


@pytest.mark.parametrize(("headers", "enters"), KEYS)
async def test_anthropics_key_is_a_key_everywhere(
    tmp_path: Path, headers: list[tuple[str, str]], enters: bool
) -> None:
    async with serving(tmp_path, api_key="sesame-open") as server:
        for path in ("/v1/models", "/metrics"):
            answer = await server.client.get(path, headers=headers)
            assert answer.status_code == (200 if enters else 401)


async def test_models_for_anthropics_clients(server: Server) -> None:
    listed = (await server.client.get("/v1/models")).json()
    assert (listed["has_more"], listed["first_id"], listed["last_id"]) == (False, BASE, "haiku")
    for model in listed["data"]:
        info = wire.ModelInfo.model_validate(model)
        assert (info.display_name, info.type) == (info.id, "model")
        assert int(info.created_at.timestamp()) == model["created"]


@pytest.mark.parametrize(
    ("asked", "shown", "more"),
    [
        ({}, [BASE, *ADAPTERS], False),
        ({"limit": 1}, [BASE], True),
        ({"limit": 1000}, [BASE, *ADAPTERS], False),
        ({"after_id": BASE}, [*ADAPTERS], False),
        ({"after_id": BASE, "limit": 1}, [ADAPTERS[0]], len(ADAPTERS) > 1),
        ({"after_id": ADAPTERS[-1]}, [], False),
        ({"before_id": ADAPTERS[-1], "limit": 1}, [[BASE, *ADAPTERS][-2]], True),
        ({"before_id": ADAPTERS[0], "limit": 1}, [BASE], False),
        ({"before_id": BASE}, [], False),
    ],
)
async def test_pages_of_models(
    server: Server, asked: dict[str, str | int], shown: list[str], more: bool
) -> None:
    listed = (await server.client.get("/v1/models", params=asked)).json()
    assert ([model["id"] for model in listed["data"]], listed["has_more"]) == (shown, more)
    assert listed["last_id"] == (shown[-1] if shown else None)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "1001"}, "limit"),
        ({"limit": "all"}, "limit"),
        ({"after_id": "nobody"}, "after_id"),
        ({"before_id": ""}, "before_id"),
        ({"after_id": BASE, "before_id": BASE}, "before_id"),
    ],
)
async def test_a_page_that_is_not_there(server: Server, asked: dict[str, str], param: str) -> None:
    answer = await server.client.get("/v1/models", params=asked)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
