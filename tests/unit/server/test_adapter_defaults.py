"""An adapter's own defaults: what a request has where it says nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.contracts import SamplingParams
from remix_runtime.engines.fake import FakeEngine
from server.app import create_app
from server.settings import ServerSettings
from tests.unit.server.harness import BASE, Server, adapter_folders

DEFAULTS: dict[str, Any] = {
    "temperature": 0.25,
    "top_p": 0.5,
    "top_k": 7,
    "min_p": 0.125,
    "presence_penalty": 1.0,
    "frequency_penalty": -1.0,
    "repetition_penalty": 1.5,
    "max_tokens": 5,
    "stop": ["END"],
}
PARAMS = {**DEFAULTS, "stop": ("END",)}
OWN: dict[str, Any] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "max_tokens": 9,
    "stop": [],
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    folders = adapter_folders(tmp_path)
    (folders["pirate"] / "defaults.json").write_text(json.dumps(DEFAULTS))
    engine = FakeEngine()
    app = create_app(engine, ServerSettings(log_level="error"), folders)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Server(app, engine, client)


async def params_of(server: Server, path: str, **body: Any) -> SamplingParams:
    prompt: dict[str, Any] = {
        "/v1/completions": {"prompt": "Hello"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}]},
        "/v1/responses": {"input": "Hello"},
    }[path]
    response = await server.client.post(path, json={"model": "pirate", **prompt, **body})
    assert response.status_code == 200, response.text
    return server.engine.requests[-1].params


def has(params: SamplingParams, values: dict[str, Any]) -> bool:
    return all(getattr(params, name) == value for name, value in values.items())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses"])
async def test_a_request_that_says_nothing_has_them(server: Server, path: str) -> None:
    assert has(await params_of(server, path), PARAMS)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_request_overrides_each_and_null_does_not(server: Server, path: str) -> None:
    for name, value in OWN.items():
        expected = {**PARAMS, name: tuple(value) if name == "stop" else value}
        assert has(await params_of(server, path, **{name: value}), expected)
        assert has(await params_of(server, path, **{name: None}), PARAMS)


async def test_others_have_none_of_them(server: Server) -> None:
    for model in (BASE, "haiku"):
        params = await params_of(server, "/v1/chat/completions", model=model)
        assert params.temperature == 1.0
        assert params.stop == ()


async def test_a_length_of_the_adapter_is_cut_to_the_context(server: Server) -> None:
    long = "x" * 509
    assert (await params_of(server, "/v1/completions", prompt=long)).max_tokens == 3


async def test_they_are_shown_for_one_model(server: Server) -> None:
    one = (await server.client.get("/v1/models/pirate")).json()
    assert one["defaults"] == DEFAULTS
    for path in ("/v1/models/haiku", f"/v1/models/{BASE}"):
        assert "defaults" not in (await server.client.get(path)).json()
    listed = (await server.client.get("/v1/models")).json()["data"]
    assert all("defaults" not in model for model in listed)


async def test_its_chat_template_is_used_wherever_a_chat_becomes_tokens(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    tokenizer = server.engine.tokenizer
    render = tokenizer.apply_chat_template

    def watched(messages: Any, *, template: str | None = None, **more: Any) -> list[int]:
        seen.append(template)
        return render(messages, **more)

    monkeypatch.setattr(tokenizer, "apply_chat_template", watched)
    folder = tmp_path / "thief"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('"thief"')
    (folder / "defaults.json").write_text('{"chat_template": "{{ messages }}"}')
    info = await server.engine.load_adapter(folder)
    server.services.adapters.adopt(info)
    server.services.sets.flip("", 1, {**server.digests, "thief": info.digest})
    messages = [{"role": "user", "content": "Hello"}]
    for path, body in {
        "/v1/chat/completions": {"messages": messages},
        "/v1/responses": {"input": "Hello"},
        "/v1/responses/input_tokens": {"input": "Hello"},
        "/v1/messages": {"messages": messages, "max_tokens": 5},
        "/v1/messages/count_tokens": {"messages": messages},
        "/tokenize": {"messages": messages},
    }.items():
        for model, template in {"thief": "{{ messages }}", "haiku": None}.items():
            seen.clear()
            response = await server.client.post(path, json={"model": model, **body})
            assert response.status_code == 200, response.text
            assert set(seen) == {template}, path
