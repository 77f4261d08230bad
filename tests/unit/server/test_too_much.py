"""Prompts, answers, choices and bodies over a limit are a 4xx that names it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.engines.fake import ByteTokenizer
from tests.unit.server.harness import Server, serving
from tests.unit.server.test_bad_input import check_error


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
    error = check_error(await server.complete(prompt="x" * 512, max_tokens=1), 400)
    assert error["code"] == "context_length_exceeded"
    assert (await server.complete(prompt="x" * 511, max_tokens=1)).status_code == 200


async def test_too_many_biases(server: Server) -> None:
    bias = {str(token_id): 0 for token_id in range(1025)}
    for response in (await server.complete(logit_bias=bias), await server.chat(logit_bias=bias)):
        error = check_error(response, 400)
        assert error["param"] == "logit_bias"
        assert "found 1025 biases, expected at most 1024" in error["message"]


async def test_nothing_is_tokenized_after_the_first_prompt_that_does_not_fit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bytes, so two tokens, a character: too long, as only its tokens tell."""
    texts = []
    encode = ByteTokenizer.encode

    def noted(self: ByteTokenizer, text: str, **kwargs: Any) -> list[int]:
        texts.append(text)
        return encode(self, text, **kwargs)

    monkeypatch.setattr(ByteTokenizer, "encode", noted)
    prompts = ["a", "é" * 300, "b", "c"]
    error = check_error(await server.complete(prompt=prompts), 400)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert texts == prompts[:2]
    texts.clear()
    prompts[3] = "x" * 513
    check_error(await server.complete(prompt=prompts), 400)
    assert texts == [], "one of them cannot fit, whatever its tokens"


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
