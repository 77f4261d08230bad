"""`/v1/responses`: what it takes, what it answers, and what it remembers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai.types.responses as wire
import pytest

from remix_runtime.engines.fake import FakeConfig
from server.api import responses
from server.api.wire.response_items import ITEM
from tests.unit.server.harness import BASE, Server, greedy_text, serving
from tests.unit.server.named_events import response_events
from tests.unit.server.scripted import scripted
from tests.unit.server.tenants import tenant_serving
from tests.unit.server.test_bad_input import check_error


async def respond(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    given = {"model": BASE, "input": "Hello", "temperature": 0, "max_output_tokens": 8}
    return await client.post("/v1/responses", json={**given, **body})


async def answered(server: Server, **body: Any) -> dict[str, Any]:
    answer = await respond(server.client, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert wire.Response.model_validate(found).output is not None
    return found


def text_of(answer: dict[str, Any]) -> str:
    [message] = answer["output"]
    [part] = message["content"]
    return str(part["text"])


async def test_an_answer_has_all_that_clients_read(server: Server) -> None:
    text, _ = await greedy_text(server.engine, "user: Hello\nassistant: ", 8)
    answer = await answered(server, metadata={"who": "me"}, user="u")
    assert text_of(answer) == text
    assert (answer["status"], answer["incomplete_details"]) == (
        "incomplete",
        {"reason": "max_output_tokens"},
    )
    assert answer["usage"]["input_tokens"] == len("user: Hello\nassistant: ")
    assert answer["usage"]["output_tokens"] == 8
    assert (answer["metadata"], answer["user"], answer["temperature"]) == ({"who": "me"}, "u", 0)
    assert answer["system_fingerprint"] == f"base-{BASE}"


async def test_a_stream_tells_the_same(server: Server) -> None:
    answer = await answered(server)
    events = response_events((await respond(server.client, stream=True)).text)
    types = [event["type"] for event in events]
    assert types[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert types[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    last = events[-1]["response"]
    assert "".join(deltas) == events[-4]["text"] == text_of(last) == text_of(answer)
    assert events[-2]["item"] == last["output"][0]
    own = ("id", "output", "created_at", "completed_at")
    assert {k: v for k, v in last.items() if k not in own} == {
        k: v for k, v in answer.items() if k not in own
    }


async def test_a_whole_answer_is_completed_also_without_a_word() -> None:
    async with scripted() as server:
        answer = await answered(server)
        assert (answer["status"], text_of(answer)) == ("completed", "")
        assert answer["completed_at"] >= answer["created_at"]
        events = response_events((await respond(server.client, stream=True)).text)
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


async def test_a_failure_ends_the_stream_as_failed(server: Server) -> None:
    server.engine.fail_next_after = 2
    events = response_events((await respond(server.client, stream=True)).text)
    failed = events[-1]["response"]
    assert (events[-1]["type"], failed["status"]) == ("response.failed", "failed")
    assert failed["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(events)
    assert failed["output"][0]["status"] == "incomplete"
    gone = await server.client.get(f"/v1/responses/{failed['id']}")
    assert gone.status_code == 404


async def test_logprobs(server: Server) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    [part] = (await answered(server, **asked))["output"][0]["content"]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"]
    assert {len(entry["top_logprobs"]) for entry in part["logprobs"]} == {2}
    events = response_events((await respond(server.client, stream=True, **asked)).text)
    told = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    assert [entry for each in told for entry in each] == part["logprobs"]
    assert events[-4]["logprobs"] == part["logprobs"]
    plain = (await answered(server))["output"][0]["content"][0]
    assert plain["logprobs"] == []


ITEMS = [
    {"role": "developer", "content": "Be short."},
    {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    {
        "type": "message",
        "role": "assistant",
        "id": "msg_1",
        "status": "completed",
        "phase": "final_answer",
        "content": [
            {"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []},
            {"type": "output_text", "text": "there", "annotations": []},
        ],
    },
    {"role": "user", "content": "Again"},
]


async def test_items_become_a_chat(server: Server) -> None:
    await answered(server, instructions="Be kind.", input=ITEMS)
    assert server.prompt == (
        "system: Be kind.\nsystem: Be short.\nuser: Hello\nassistant: Hi\nthere\n"
        "user: Again\nassistant: "
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    ({"input": "a\0"}, "input"),
    ({"input": [{"role": "user", "content": "a\0"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": "x"}, {"type": "web_search_call"}]}, "input[1].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
    ),
    ({"input": [{"role": "critic", "content": "x"}]}, "input[0].role"),
    ({"input": [{"type": "reasoning", "summary": [{"text": "x"}]}]}, "input[0].summary"),
    ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "name": 3}]}, "tools[0].name"),
    ({"tool_choice": {"type": "mcp"}}, "tool_choice.type"),
    ({"tool_choice": "always"}, "tool_choice"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"truncation": "auto"}, "truncation"),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"reasoning": {"budget": 5}}, "reasoning.budget"),
    ({"text": {"max_words": 5}}, "text.max_words"),
    ({"text": {"format": {"type": "text", "regex": "a"}}}, "text.format.regex"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}, "regex": "a"}}},
        "text.format.regex",
    ),
    ({"tool_choice": {"type": "function", "name": "f", "mode": "auto"}}, "tool_choice.mode"),
    ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"messages": []}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"top_k": "many"}, "top_k"),
    ({"n": 2}, "n"),
    ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ({"unheard_of": 1}, "unheard_of"),
    ({"input": "x" * 5000}, "input"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[json.dumps(body)[:60] for body, _ in WRONG])
async def test_errors_name_what_the_client_sent(
    server: Server, body: dict[str, Any], param: str
) -> None:
    for stream in (False, True):
        given = {"stream": stream, **body} if "stream_options" not in body else body
        answer = await respond(server.client, **given)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert error["param"] == param, error
        assert "messages" not in error["message"] or param == "messages"
    assert server.engine.requests == []


NOTHING: list[dict[str, Any]] = [
    {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True},
    {"tool_choice": "none", "max_tool_calls": 3},
    {"include": ["reasoning.encrypted_content"], "store": False},
    {"include": [], "truncation": "disabled", "background": False},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
    {"reasoning": {"effort": None, "summary": None}, "service_tier": "auto"},
    {"prompt_cache_key": "k", "safety_identifier": "s", "conversation": None, "prompt": None},
    {"stream_options": None, "metadata": None, "instructions": None, "client_metadata": {"a": 1}},
]


@pytest.mark.parametrize("body", NOTHING, ids=json.dumps)
async def test_what_asks_for_nothing_is_taken(server: Server, body: dict[str, Any]) -> None:
    plain = text_of(await answered(server))
    assert text_of(await answered(server, **body)) == plain


async def test_sampling_is_honoured_and_told(server: Server) -> None:
    answer = await answered(
        server, temperature=0.5, top_p=0.9, presence_penalty=1, seed=3, stop=["~"], top_k=5
    )
    params = server.engine.requests[-1].params
    assert (params.temperature, params.top_p, params.presence_penalty) == (0.5, 0.9, 1)
    assert (params.seed, params.stop, params.top_k, params.max_tokens) == (3, ("~",), 5, 8)
    assert (answer["temperature"], answer["top_p"], answer["presence_penalty"]) == (0.5, 0.9, 1)


async def test_counting_tokens(server: Server) -> None:
    first = await answered(server)
    body = {"input": "And?", "instructions": "Be kind.", "previous_response_id": first["id"]}
    counted = await server.client.post("/v1/responses/input_tokens", json={"model": BASE, **body})
    assert len(server.engine.requests) == 1
    tokens = (await answered(server, **body))["usage"]["input_tokens"]
    assert counted.json() == {"object": "response.input_tokens", "input_tokens": tokens}


# -- what is remembered -------------------------------------------------------------------------


async def test_going_on_from_a_response(server: Server) -> None:
    first = await answered(server, instructions="Only now.", input="One")
    second = await answered(server, previous_response_id=first["id"], input="Two")
    third = await answered(server, previous_response_id=second["id"], input="Three")
    assert third["previous_response_id"] == second["id"]
    assert server.prompt == (
        f"user: One\nassistant: {text_of(first)}\nuser: Two\nassistant: {text_of(second)}\n"
        "user: Three\nassistant: "
    )
    # A response stays what it was, also for who goes on from it another way.
    await answered(server, previous_response_id=first["id"], input="Other")
    assert server.prompt.endswith(f"{text_of(first)}\nuser: Other\nassistant: ")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_can_be_read_again(server: Server, stream: bool) -> None:
    if stream:
        made = response_events((await respond(server.client, stream=True)).text)[-1]["response"]
    else:
        made = await answered(server)
    found = await server.client.get(f"/v1/responses/{made['id']}")
    assert found.json() == made
    assert (await server.client.get(f"/v1/responses/{made['id']}?stream=true")).status_code == 400
    deleted = await server.client.delete(f"/v1/responses/{made['id']}")
    assert deleted.json() == {"id": made["id"], "object": "response", "deleted": True}
    for method in ("GET", "DELETE"):
        gone = await server.client.request(method, f"/v1/responses/{made['id']}")
        assert gone.status_code == 404
        assert gone.json()["error"]["code"] == "previous_response_not_found"


async def test_what_is_not_stored_is_not_found(server: Server) -> None:
    made = await answered(server, store=False)
    assert made["store"] is False
    refused = await respond(server.client, previous_response_id=made["id"])
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (
        404,
        "previous_response_id",
        "previous_response_not_found",
    )
    assert "1000" in error["message"]
    assert (await server.client.get(f"/v1/responses/{made['id']}")).status_code == 404


@pytest.mark.parametrize("path", ["compact", "resp_1/cancel", "resp_1/nothing"])
async def test_what_is_not_there_is_a_404(server: Server, path: str) -> None:
    for body in ({}, {"model": BASE}):
        refused = await server.client.post(f"/v1/responses/{path}", json=body)
        assert check_error(refused, 404)["code"] == "unsupported_endpoint"


async def test_references_to_items(server: Server) -> None:
    made = await answered(server)
    reference = {"type": "item_reference", "id": made["output"][0]["id"]}
    question = {"role": "user", "content": "And?"}
    for form in (reference, {"id": reference["id"]}):
        await answered(server, input=[form, question])
        assert server.prompt == f"assistant: {text_of(made)}\nuser: And?\nassistant: "
    missing = await respond(server.client, input=[question, {**reference, "id": "msg_none"}])
    assert (missing.status_code, missing.json()["error"]["param"]) == (404, "input[1].id")
    # What is remembered holds the item, not the reference.
    going_on = await answered(server, input=[reference, question])
    await server.client.delete(f"/v1/responses/{made['id']}")
    await answered(server, previous_response_id=going_on["id"], input="More")
    assert server.prompt.startswith(f"assistant: {text_of(made)}\nuser: And?\n")


async def test_a_context_that_grew_too_long_names_its_field(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeConfig(max_model_len=100)) as server:
        made = await answered(server, input="x" * 50)
        refused = await respond(server.client, input="y" * 50, previous_response_id=made["id"])
        assert refused.json()["error"]["code"] == "context_length_exceeded"
        assert refused.json()["error"]["param"] == "input"


async def test_tenants_have_their_own_memory(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        ours = await server.tenant("a", may_use_base=True)
        theirs = await server.tenant("b", may_use_base=True)
        made = (await respond(ours)).json()
        item = {"type": "item_reference", "id": made["output"][0]["id"]}

        def asks(answer_id: str, item_id: str) -> list[tuple[str, str, Any]]:
            reference = [{"type": "item_reference", "id": item_id}]
            body = {"model": BASE, "input": "x"}
            return [
                ("GET", f"/v1/responses/{answer_id}", None),
                ("DELETE", f"/v1/responses/{answer_id}", None),
                ("POST", "/v1/responses", {**body, "previous_response_id": answer_id}),
                ("POST", "/v1/responses", {**body, "input": reference}),
            ]

        nobodys = asks("resp_none", "msg_none")
        for real, none in zip(asks(made["id"], item["id"]), nobodys, strict=True):
            found = await theirs.request(real[0], real[1], json=real[2])
            expected = await theirs.request(none[0], none[1], json=none[2])
            assert found.status_code == expected.status_code == 404
            text = found.text.replace(made["id"], "resp_none").replace(item["id"], "msg_none")
            assert text == expected.text
        assert (await ours.get(f"/v1/responses/{made['id']}")).json() == made


@pytest.mark.parametrize("path", ["", "/input_tokens"])
async def test_nothing_that_is_remembered_is_read_for_who_is_over_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("a", may_use_base=True, requests_per_minute=1)
        made = (await respond(client)).json()
        monkeypatch.setattr(responses, "_remembered_items", None)
        body = {"model": BASE, "input": "x", "previous_response_id": made["id"]}
        refused = await client.post(f"/v1/responses{path}", json=body)
        assert refused.status_code == 429, refused.text


async def test_every_item_of_an_answer_is_an_item_of_an_input(server: Server) -> None:
    for item in (await answered(server))["output"]:
        ITEM.validate_python(item)
