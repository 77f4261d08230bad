"""Bad input gets a clear 4xx in OpenAI's shape, leaks nothing, and harms no later request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import ErrorObject

from remix_runtime.engines.fake import ByteTokenizer
from tests.unit.server.harness import BASE, Server, serving

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
    *[("user", v) for v in (1, "\0")],
    *[("stream_options", v) for v in (1, [], {"include_usage": True})],
]
BAD_COMPLETION: list[tuple[str, Any]] = [
    *[("prompt", v) for v in (None, 1, [], [[]], {}, [1, "a"], ["a", 1], [True], [-1], [1.5])],
    *[("prompt", v) for v in ([[1], "a"], [[1], []], "a\0b", ["a", "\0"], [10**400], [257], "")],
    *[("logprobs", v) for v in (-1, 21, True, 1.5, "1")],
    *[("echo", v) for v in (1, "x")],
    *[("best_of", v) for v in (0, 2, True)],
    ("suffix", "end"),
]
BAD_CHAT: list[tuple[str, Any]] = [
    *[("messages", v) for v in (None, "a", [], {}, 1)],
    *[("max_completion_tokens", v) for v in (0, True, "1")],
    *[("logprobs", v) for v in (1, "x")],
    ("top_logprobs", 2),
    *[("tools", [{"type": "function"}]), ("tool_choice", "required"), ("functions", [{}])],
    *[("response_format", {"type": "json_object"}), ("modalities", ["text", "audio"])],
    *[("audio", {}), ("guided_json", {}), ("chat_template", "{{ 1 }}"), ("echo", True)],
    *[("prompt_logprobs", 0), ("min_tokens", 3), ("bad_words", ["a"])],
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
        ({"role": "wizard", "content": "a"}, "messages[0].role"),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, "messages[0].role"),
        ({"role": "function", "content": "a", "name": "f"}, "messages[0].role"),
        ({"role": "user", "content": "a", "name": 5}, "messages[0].name"),
        ({"role": "assistant", "content": None, "tool_calls": [CALL]}, "messages[0].tool_calls"),
        *[
            ({"role": "assistant", "content": "a", name: value}, f"messages[0].{name}")
            for name, value in {
                "tool_calls": [CALL],
                "tool_call_id": "call_1",
                "function_call": CALL["function"],
                "refusal": "I will not",
                "audio": {"id": "audio_1"},
                "reasoning_content": "so",
                "reasoning": "so",
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


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("length", [512, 513, 5000])
async def test_prompt_over_the_context(server: Server, length: int, stream: bool) -> None:
    messages = [{"role": "user", "content": "x" * length}]
    for response, param in (
        (await server.complete(prompt="x" * length, stream=stream), "prompt"),
        (await server.complete(prompt=["y", "x" * length], stream=stream), "prompt"),
        (await server.chat(messages=messages, stream=stream), "messages"),
    ):
        error = check_error(response, 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", param)
        assert "512 tokens" in error["message"]
    await server.expect_good_request()


async def test_a_text_that_cannot_fit_is_not_even_tokenized(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(ByteTokenizer, "encode", refuse)
    text = "x" * 513
    messages = [{"role": "user", "content": "x" * 500}, {"role": "user", "content": "y" * 13}]
    for answer in (await server.complete(prompt=text), await server.chat(messages=messages)):
        assert check_error(answer, 400)["code"] == "context_length_exceeded"


async def test_too_many_prompts(server: Server) -> None:
    for prompt in (["a"] * 129, [[1]] * 129):
        error = check_error(await server.complete(prompt=prompt), 400)
        assert "found 129 prompts, expected at most 128" in error["message"]


async def test_completion_over_the_context(server: Server) -> None:
    error = check_error(await server.complete(prompt="x" * 500, max_tokens=13), 400)
    assert error["code"] == "context_length_exceeded"
    assert (await server.complete(prompt="x" * 500, max_tokens=12)).status_code == 200


async def test_too_many_sequences(server: Server) -> None:
    for body in ({"n": 65}, {"prompt": ["a"] * 65}, {"prompt": ["a"] * 33, "n": 2}):
        assert check_error(await server.complete(**body), 400)["param"] == "n"
    assert check_error(await server.chat(n=65), 400)["param"] == "n"
    await server.expect_good_request()


@pytest.mark.parametrize("announced", [True, False])
async def test_large_body(tmp_path: Path, announced: bool) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(1000):
            read += 1
            yield b" " * 1000

    headers = {"Content-Type": "application/json"}
    async with serving(tmp_path, max_body_bytes=10_000) as server:
        if announced:
            headers["Content-Length"] = "1000000"
        response = await server.client.post("/v1/completions", content=body(), headers=headers)
        assert check_error(response, 413)["code"] == "body_too_large"
        assert read == 0 if announced else read <= 12
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


async def test_unknown_fields_are_ignored_and_logged(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="server"):
        response = await server.complete(store=True, metadata={"a": "b"}, secret="hunter2")
    assert response.status_code == 200
    assert "['metadata', 'secret', 'store']" in caplog.text
    assert "hunter2" not in caplog.text


async def test_known_fields_that_ask_for_nothing_are_accepted(server: Server) -> None:
    fields = {"best_of": 2, "n": 2, "suffix": None, "min_tokens": 0, "skip_special_tokens": True}
    assert (await server.complete(**fields)).status_code == 200
    fields = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    assert (await server.chat(**fields, modalities=["text"])).status_code == 200
