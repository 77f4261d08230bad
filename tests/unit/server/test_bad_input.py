"""Bad input gets a clear 4xx in OpenAI's shape, leaks nothing, and harms no later request."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from openai.types import ErrorObject

from server.api.wire.others import ASK_NOTHING, TAKEN
from tests.unit.server.harness import BASE, Server

PATHS = ("/v1/completions", "/v1/chat/completions")


def check_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    ErrorObject.model_validate(body["error"], strict=True)
    for trace in ("Traceback", ".py", "File ", "site-packages", "pydantic", "0x"):
        assert trace not in response.text
    assert len(response.text) < 2500
    error: dict[str, Any] = body["error"]
    return error


DEEP = b'{"model": "fake-base", "prompt": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
RAW = {
    "empty": b"",
    "blank": b"  ",
    "cut": b'{"model": "fake-base", "prompt": "a',
    "two documents": b'{"model": "fake-base", "prompt": "a"}{}',
    "python literal": b"{'model': 'fake-base'}",
    "NaN": b'{"model": "fake-base", "prompt": "a", "temperature": NaN}',
    "Infinity": b'{"model": "fake-base", "prompt": "a", "temperature": Infinity}',
    "unknown NaN": b'{"model": "fake-base", "prompt": "a", "unknown": NaN}',
    "invalid UTF-8": b'{"model": "fake-base", "prompt": "\xff\xfe"}',
    "UTF-16": json.dumps({"model": BASE, "prompt": "a"}).encode("utf-16"),
    "lone surrogate": b'{"model": "fake-base", "prompt": "a\\ud800b"}',
    "lone low surrogate": b'{"model": "fake-base", "prompt": "\\udc00"}',
    "surrogate bytes": b'{"model": "fake-base", "prompt": "\xed\xa0\x80"}',
    "surrogate key": b'{"\\ud800": 1, "model": "fake-base", "prompt": "a"}',
    "raw NUL": b'{"model": "fake-base", "prompt": "a\0b"}',
    "deep": DEEP,
    "endless integer": b'{"model": "fake-base", "prompt": "a", "seed": 1' + b"0" * 9000 + b"}",
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
async def test_what_is_not_json(server: Server, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    response = await server.client.post(path, content=body, headers=headers)
    check_error(response, 400)
    await server.expect_good_request()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"text"', b"true", b"[{}]"])
async def test_json_that_is_no_object(server: Server, path: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    check_error(await server.client.post(path, content=body, headers=headers), 400)
    await server.expect_good_request()


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx", "\xff", ";"],
)
async def test_content_type(server: Server, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type.encode("latin-1")}
    body = json.dumps({"model": BASE, "prompt": "a"})
    error = check_error(
        await server.client.post("/v1/completions", content=body.encode(), headers=headers), 415
    )
    assert "application/json" in error["message"]
    for good in ("application/json; charset=utf-8", "Application/JSON"):
        response = await server.client.post(
            "/v1/completions", content=body, headers={"Content-Type": good}
        )
        assert response.status_code == 200


BAD_FIELDS: list[tuple[str, Any]] = [
    *[("model", value) for value in (None, 1, "", [], {}, True, "a\0b", "x" * 1000)],
    *[("max_tokens", v) for v in (0, -1, 1.5, "5", True, [], 10**400, 1e20)],
    *[("temperature", v) for v in (-0.1, 2.1, "1", True, [], {}, 10**400)],
    *[("top_p", v) for v in (0, -1, 1.01, "x", False)],
    *[("min_p", v) for v in (-0.1, 1.1, "0")],
    *[("top_k", v) for v in (-2, 1.5, True, 10**400, "1")],
    *[("n", v) for v in (0, -1, 1.5, True, 10**9, 10**400, 129)],
    *[("seed", v) for v in (2**63, -(2**63) - 1, 0.5, "1", True, 10**400)],
    *[("presence_penalty", v) for v in (-2.1, 2.1, "0", True)],
    *[("frequency_penalty", v) for v in (-2.1, 2.1, "0", True)],
    *[("repetition_penalty", v) for v in (0, -1, 1e300, 1e-300, True)],
    *[("stop", v) for v in (1, "", [""], [1], {}, ["a"] * 17, "a\0", ["x" * 1001])],
    *[("stop_token_ids", v) for v in ("1", [-1], [1.5], [True], [10**400], [1] * 129, [257])],
    *[("logit_bias", {key: 1}) for key in ("a", "-1", "1.5", "", "٣", "1" * 5000, "257")],
    *[("logit_bias", {"1": value}) for value in (101, -101, "1", None, True, 10**400)],
    ("logit_bias", []),
    *[("stream", v) for v in (1, "true", [])],
    *[("ignore_eos", v) for v in (1, "true")],
    *[("min_tokens", v) for v in (-1, 1.5, "1", True, 10**400, 513)],
    *[("include_stop_str_in_output", v) for v in (1, "true")],
    *[("skip_special_tokens", v) for v in (0, "false")],
    *[("allowed_token_ids", v) for v in ("1", [-1], [1.5], [True], {}, [1] * 65537)],
    *[("bad_words", v) for v in ("a", [""], [1], ["a\0"], ["a"] * 129, ["a" * 101])],
    *[("prompt_logprobs", v) for v in (-1, 21, 1.5, "1", True)],
    *[("truncate_prompt_tokens", v) for v in (-2, 0, 1.5, "1", True, 10**400)],
    *[("truncation_side", v) for v in ("middle", 1, True)],
    *[("return_token_ids", v) for v in (1, "true")],
    *[("return_tokens_as_token_ids", v) for v in (1, "true")],
    *[("request_id", v) for v in ("", 1, "a\0", "x" * 257)],
    *[("store", True), ("service_tier", "flex"), ("use_beam_search", True), ("priority", 1)],
    *[("logits_processors", ["a"]), ("prompt_embeds", "aGk="), ("logprob_token_ids", [1])],
    *[("vllm_xargs", {"a": 1}), ("kv_transfer_params", {"a": 1}), ("stream_interval", 5)],
    *[("repetition_detection", {}), ("watermarking", True), ("top_logprob", 1)],
    *[("stream_options", v) for v in (1, [], {"include_usage": True})],
]
TOOL = {"type": "function", "function": {"name": "f"}}
BAD_COMPLETION: list[tuple[str, Any]] = [
    *[("prompt", v) for v in (None, 1, [], [[]], {}, [1, "a"], ["a", 1], [True], [-1], [1.5])],
    *[("prompt", v) for v in ([[1], "a"], [[1], []], "a\0b", ["a", "\0"], [10**400], [257], "")],
    *[("logprobs", v) for v in (-1, 21, True, 1.5, "1")],
    *[("echo", v) for v in (1, "x")],
    *[("best_of", v) for v in (0, 2, True)],
    ("suffix", "end"),
    *[("best_of", 1.5), ("prompt", [1.0, "a"]), ("logprobs", 2.5)],
]
BAD_CHAT: list[tuple[str, Any]] = [
    *[("messages", v) for v in (None, "a", [], {}, 1)],
    *[("max_completion_tokens", v) for v in (0, True, "1")],
    *[("logprobs", v) for v in (1, "x")],
    ("top_logprobs", 2),
    *[("tools", v) for v in ({}, [1], [{"type": "function"}], [{"type": "custom", "custom": {}}])],
    *[
        ("tools", [{"type": "function", "function": {"name": name}}])
        for name in ("", "a b", "é", "a" * 129)
    ],
    *[
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": value}}])
        for value in (
            [],
            "x",
            {"type": "string"},
            {"properties": {"x": {"const": "y" * (1 << 18)}}},
        )
    ],
    ("tools", [TOOL, TOOL]),
    ("tools", [{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]),
    *[("tool_choice", v) for v in ("required", "any", 1, {}, {"type": "custom"})],
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("functions", [{}]),
    *[("parallel_tool_calls", v) for v in (1, "true")],
    ("documents", [{"text": "no template reads this"}]),
    *[("chat_template_kwargs", v) for v in ([], {"messages": []}, {"bos_token": "x"}, {"mood": 1})],
    ("chat_template_kwargs", {f"v{i}": i for i in range(33)}),
    ("chat_template_kwargs", {"enable_thinking": True}),
    *[("add_generation_prompt", "no"), ("continue_final_message", True)],
    *[("modalities", ["text", "audio"]), ("audio", {}), ("chat_template", "{{ 1 }}")],
    *[("echo", True), ("max_tokens", 0), ("verbosity", "high"), ("messages", "a")],
]


@pytest.mark.parametrize(
    ("field", "value"), [*BAD_FIELDS, *BAD_COMPLETION], ids=lambda v: f"{v}"[:30]
)
async def test_bad_completion_field(server: Server, field: str, value: Any) -> None:
    error = check_error(await server.complete(**{field: value}), 400)
    assert error["param"].split("[")[0] == field
    assert field in error["message"] or "context" in error["message"]
    await server.expect_good_request()


@pytest.mark.parametrize(("field", "value"), [*BAD_FIELDS, *BAD_CHAT], ids=lambda v: f"{v}"[:30])
async def test_bad_chat_field(server: Server, field: str, value: Any) -> None:
    error = check_error(await server.chat(**{field: value}), 400)
    assert error["param"].split("[")[0] == field
    await server.expect_good_request()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"seed": 2**63}, "less_than_equal"),
        ({"seed": -(2**63) - 1}, "greater_than_equal"),
        ({"top_p": 0}, "greater_than"),
        ({"temperature": "1"}, "float_type"),
        ({"model": None}, "string_type"),
        ({"stop": ["a"] * 17}, "too_long"),
        ({"messages": [{"content": "a"}]}, "missing"),
        ({"messages": "a"}, "list_type"),
        # Rules of our own, as what a value may be beside another.
        ({"truncate_prompt_tokens": 0}, "invalid_value"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "invalid_value"),
        ({"store": True}, "invalid_value"),
        ({"nothing": 1}, "invalid_value"),
    ],
)
async def test_the_code_says_what_is_wrong(server: Server, body: dict[str, Any], code: str) -> None:
    error = check_error(await server.chat(**body), 400)
    assert error["code"] == code
    assert (code in error["message"]) == (code != "invalid_value")
    # Nobody adds a series by what they send.
    metrics = (await server.client.get("/metrics")).text
    assert 'type="invalid_request_error"} 1.0' in metrics
    assert code not in metrics


@pytest.mark.parametrize("value", ["1e400", "-1e400", "1E+9999"])
@pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed", "top_p"])
async def test_numbers_over_every_range(server: Server, field: str, value: str) -> None:
    body = f'{{"model": "{BASE}", "prompt": "a", "{field}": {value}}}'
    headers = {"Content-Type": "application/json"}
    response = await server.client.post("/v1/completions", content=body, headers=headers)
    assert check_error(response, 400)["param"] == field
    await server.expect_good_request()


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("text", "messages[0]"),
        ({}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": "\0"}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": ["a"]}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content.text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[0].content.text"),
        ({"role": "user", "content": [{"type": "text", "text": "\0"}]}, "messages[0].content.text"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[0].content"),
        ({"role": "tool", "content": "a"}, "messages[0].tool_call_id"),
        ({"role": "tool", "tool_call_id": "1"}, "messages[0].content"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "a", "reasoning": "so"}, "messages[0].reasoning"),
        *[
            (
                {"role": "assistant", "tool_calls": [{**CALL, **wrong}]},
                f"messages[0].tool_calls[0].{name}",
            )
            for name, wrong in {
                "id": {"id": 5},
                "type": {"type": "custom"},
                "function.name": {"function": {"name": "", "arguments": "{}"}},
            }.items()
        ],
        *[
            (
                {
                    "role": "assistant",
                    "tool_calls": [{**CALL, "function": {"name": "f", "arguments": arguments}}],
                },
                "messages[0].tool_calls[0].function.arguments",
            )
            for arguments in (
                *('{"a":', "[]", "5", '{"a": NaN}', "[" * 9999, '{"a": "\\ud800"}'),
                *({"a": 1}, None),
            )
        ],
        ({"role": "function", "content": "a", "name": "f"}, "messages[0].role"),
        ({"role": "user", "content": "a", "name": 5}, "messages[0].name"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "messages[0].content"),
        *[
            ({"role": "assistant", "content": "a", name: value}, f"messages[0].{name}")
            for name, value in {
                "tool_call_id": "call_1",
                "function_call": CALL["function"],
                "refusal": "I will not",
                "audio": {"id": "audio_1"},
                "thinking": "so",
                "images": ["aGk="],
                "prefix": True,
                "partial": True,
            }.items()
        ],
    ],
)
async def test_bad_message(server: Server, message: Any, param: str) -> None:
    error = check_error(await server.chat(messages=[message]), 400)
    assert error["param"] == param
    await server.expect_good_request()


@pytest.mark.parametrize(
    ("reasoning", "param"),
    [
        (True, "reasoning"),
        ("low", "reasoning"),
        ({"effort": 5}, "reasoning.effort"),
        ({"effort": "x" * 33}, "reasoning.effort"),
        ({"effort": "low"}, "reasoning.effort"),  # beside another one
        ({"summary": "detailed"}, "reasoning.summary"),
        ({"max_tokens": 100}, "reasoning.max_tokens"),
        ({"exclude": True}, "reasoning.exclude"),
    ],
)
async def test_bad_reasoning(server: Server, reasoning: Any, param: str) -> None:
    answer = await server.chat(reasoning=reasoning, reasoning_effort="high")
    assert check_error(answer, 400)["param"] == param


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "name", ["nobody", "fake-base ", "FAKE-BASE", "../pirate", "💥", "x" * 256]
)
async def test_unknown_model(server: Server, name: str, stream: bool) -> None:
    for response in (
        await server.complete(model=name, stream=stream),
        await server.chat(model=name, stream=stream),
    ):
        error = check_error(response, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert name[:100] in error["message"]
    assert server.engine.requests == []
    await server.expect_good_request()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("GET", "/v1", 404),
        ("POST", "/v1/completions/", 404),
        ("GET", "/v1/completions", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("OPTIONS", "/v1/completions", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/models/nobody", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/redoc", 404),
        ("GET", "/../../etc/passwd", 404),
    ],
)
async def test_wrong_path_or_method(server: Server, method: str, path: str, status: int) -> None:
    response = await server.client.request(method, path)
    check_error(response, status)
    assert status != 405 or response.headers["allow"]
    await server.expect_good_request()


@pytest.mark.parametrize("name", ["max_token", "Temperature", "secret", "x" * 100_000, "", "a\nb"])
async def test_unknown_field_is_refused_by_its_name(server: Server, name: str) -> None:
    for response in (await server.complete(**{name: 1}), await server.chat(**{name: 1})):
        error = check_error(response, 400)
        assert (error["param"] or "") == name[:100]
        assert "does not know" in error["message"]
    # null asks for nothing, whatever the name.
    assert (await server.complete(**{name: None})).status_code == 200
    await server.expect_good_request()


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in ASK_NOTHING.items() for value in values]
)
async def test_fields_that_ask_for_nothing_are_taken(server: Server, name: str, value: Any) -> None:
    await server.complete()
    await server.chat()
    plain = [request.params for request in server.engine.requests]
    server.engine.requests.clear()
    assert (await server.complete(**{name: value})).status_code == 200
    assert (await server.chat(**{name: value})).status_code == 200
    assert [request.params for request in server.engine.requests] == plain


@pytest.mark.parametrize("name", sorted(TAKEN))
async def test_fields_that_cannot_change_the_answer_are_taken(server: Server, name: str) -> None:
    body = {"temperature": 0, "max_tokens": 5}
    plain = (await server.complete(**body)).json()["choices"]
    for value in ["text"] if name == "cache_salt" else ({"a": "b"}, "text", True, []):
        assert (await server.complete(**body, **{name: value})).json()["choices"] == plain


async def test_fields_of_chats_that_ask_for_nothing_are_taken(server: Server) -> None:
    fields = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    fields |= {"logprobs": False, "top_logprobs": 0, "parallel_tool_calls": True, "documents": []}
    fields |= {"chat_template_kwargs": {"enable_thinking": False}, "reasoning_effort": "none"}
    fields |= {"echo": False, "reasoning": {"summary": "auto"}}
    assert (await server.chat(**fields, modalities=["text"])).status_code == 200
