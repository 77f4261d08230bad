"""`/tokenize`, `/detokenize`, `/tokenizer_info`, `/version`, and the paths that are not there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import openai
import pytest

from remix_runtime.engines.fake_model import EOS_ID, ByteTokenizer
from tests.unit.server.harness import BASE, Server, serving
from tests.unit.server.tenants import TenantServer, tenant_serving
from tests.unit.server.test_bad_input import check_error

MESSAGES = [{"role": "user", "content": "Hello"}]
CHAT = "user: Hello\n"


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[TenantServer]:
    async with tenant_serving(tmp_path) as running:
        yield running


async def tokenize(server: Server, **body: Any) -> Any:
    response = await server.client.post("/tokenize", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("text", ["", "Hello", "é🌍\u2028"])
@pytest.mark.parametrize("model", [{}, {"model": BASE}, {"model": "pirate"}])
async def test_there_and_back(server: Server, text: str, model: dict[str, str]) -> None:
    answer = await tokenize(server, prompt=text, add_special_tokens=False, **model)
    tokens = list(text.encode())
    assert answer == {"count": len(tokens), "max_model_len": 512, "tokens": tokens}
    back = await server.client.post("/detokenize", json={"tokens": tokens, **model})
    assert back.json() == {"prompt": text}


async def test_token_texts(server: Server) -> None:
    answer = await tokenize(server, prompt="aé", return_token_strs=True)
    assert answer["token_strs"] == ["a", "bytes:\\xc3", "bytes:\\xa9"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, CHAT + "assistant: "),
        ({"add_generation_prompt": True, "add_special_tokens": False}, CHAT + "assistant: "),
        ({"add_generation_prompt": False}, CHAT),
    ],
)
async def test_a_chat(server: Server, fields: dict[str, Any], text: str) -> None:
    answer = await tokenize(server, messages=MESSAGES, **fields)
    assert bytes(answer["tokens"]).decode() == text


@pytest.mark.parametrize("fields", [{}, {"add_generation_prompt": False}])
async def test_a_chat_whose_last_message_goes_on(server: Server, fields: dict[str, Any]) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "I am"}]
    answer = await tokenize(server, messages=messages, continue_final_message=True, **fields)
    assert bytes(answer["tokens"]).decode() == CHAT + "assistant: I am"


async def test_a_chats_tokens_are_those_that_it_is_answered_from(server: Server) -> None:
    await server.chat(messages=MESSAGES)
    answer = await tokenize(server, messages=MESSAGES)
    assert tuple(answer["tokens"]) == server.engine.requests[-1].prompt_token_ids


async def test_special_tokens_of_a_prompt(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: ByteTokenizer, text: str, *, add_special_tokens: bool, **_: Any) -> list[int]:
        return [*[EOS_ID][:add_special_tokens], *text.encode()]

    monkeypatch.setattr(ByteTokenizer, "encode", encode)
    for fields, begin in (({}, [EOS_ID]), ({"add_special_tokens": False}, [])):
        assert (await tokenize(server, prompt="a", **fields))["tokens"] == [*begin, 97]
    info = (await server.client.get("/tokenizer_info")).json()
    assert info["bos_token"] == "<eos>"
    back = await server.client.post("/detokenize", json={"tokens": [EOS_ID, 97]})
    assert back.json() == {"prompt": "<eos>a"}


async def test_what_a_client_must_know_of_the_tokenizer(server: Server) -> None:
    info = (await server.client.get("/tokenizer_info")).json()
    assert (info["bos_token"], info["eos_token"]) == (None, "<eos>")
    assert info["chat_template"] == ByteTokenizer.chat_template
    assert info["max_model_len"] == 512


async def test_version(server: Server) -> None:
    assert (await server.client.get("/version")).json() == {"version": version("remix-serve")}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        *[("/tokenize", {"prompt": v}, "prompt") for v in (1, ["a"], [1], "a\0")],
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "prompt"),
        ("/tokenize", {"prompt": "a", "model": 1}, "model"),
        ("/tokenize", {"prompt": "a", "other": 1}, "other"),
        ("/tokenize", {"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        (
            "/tokenize",
            {
                "messages": MESSAGES,
                "add_generation_prompt": True,
                "continue_final_message": True,
            },
            "continue_final_message",
        ),
        *[
            ("/detokenize", {"tokens": v}, "tokens")
            for v in (None, 1, "a", [257], [10**12], [1] * ((1 << 17) + 1))
        ],
        *[("/detokenize", {"tokens": [v]}, "tokens[0]") for v in (-1, "a", 1.5, True, None)],
        ("/detokenize", {"tokens": [1], "prompt": "a"}, "prompt"),
    ],
    ids=lambda v: f"{v}"[:40],
)
async def test_wrong_bodies(server: Server, path: str, body: dict[str, Any], param: str) -> None:
    response = await server.client.post(path, json=body)
    error = check_error(response, 400)
    assert error["param"] in (param, f"{param}[0]")
    await server.expect_good_request()


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
async def test_unknown_model(server: Server, path: str) -> None:
    body = {"model": "nobody", "prompt": "a"} if path == "/tokenize" else {"tokens": [1]}
    response = await server.client.post(path, json={**body, "model": "nobody"})
    error = check_error(response, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_a_text_that_cannot_fit_is_not_tokenized(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> list[int]:
        raise AssertionError("tokenized")

    monkeypatch.setattr(ByteTokenizer, "encode", refuse)
    long = "x" * 513
    for body in ({"prompt": long}, {"messages": [{"role": "user", "content": long}]}):
        error = check_error(await server.client.post("/tokenize", json=body), 400)
        assert (error["code"], error["param"]) == ("context_length_exceeded", next(iter(body)))


async def test_quotas_count_them(tenants: TenantServer) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [97]})):
        client = await tenants.tenant(path[1:4], requests_per_minute=2)
        for _ in range(2):
            assert (await client.post(path, json=body)).status_code == 200
        assert check_error(await client.post(path, json=body), 429)["code"] == "rate_limit_exceeded"


async def test_another_tenants_model_is_not_there(tenants: TenantServer) -> None:
    a, b = await tenants.tenant("a"), await tenants.tenant("b")
    await tenants.put("a", {"style": await tenants.adapter(1)})
    body = {"prompt": "x", "model": "style"}
    assert (await a.post("/tokenize", json=body)).status_code == 200
    check_error(await b.post("/tokenize", json=body), 404)
    check_error(await (await tenants.client()).post("/tokenize", json=body), 401)


async def test_they_need_the_key(tmp_path: Path) -> None:
    async with serving(tmp_path, api_key="sesame-open") as server:
        for method, path in (
            ("POST", "/tokenize"),
            ("POST", "/detokenize"),
            ("GET", "/tokenizer_info"),
            ("GET", "/version"),
            ("POST", "/v1/embeddings"),
        ):
            check_error(await server.client.request(method, path, json={"prompt": "a"}), 401)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/embeddings",
        "/v1/moderations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/edits",
        "/pooling",
        "/score",
        "/v1/rerank",
        "/v1/files/file-1/content",
        "/v1/batches",
        "/v1/fine_tuning/jobs",
    ],
)
async def test_what_the_server_does_not_have_says_so(server: Server, path: str) -> None:
    body = {"model": BASE, "input": "a"}
    for response in (await server.client.post(path, json=body), await server.client.get(path)):
        error = check_error(response, 400)
        assert error["code"] == "unsupported_endpoint"
        assert "generates text" in error["message"]


async def test_openais_client_gets_a_clear_error(server: Server) -> None:
    client = openai.AsyncOpenAI(
        api_key="none", base_url="http://test/v1", http_client=server.client, max_retries=0
    )
    with pytest.raises(openai.BadRequestError, match="no embeddings"):
        await client.embeddings.create(model=BASE, input="a")
