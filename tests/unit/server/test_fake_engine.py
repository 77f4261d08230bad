"""`--engine fake`: no base, and limits that a client's back-off can be tested against."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import ConfigError
from server.app import create_app
from server.engines import make_engine
from server.settings import ServerSettings
from tests.unit.server.harness import Server, eventually
from tests.unit.server.tenants import complete, tenant_serving
from tests.unit.server.test_bad_input import check_error


@asynccontextmanager
async def fake(base: str | None = None, **options: Any) -> AsyncIterator[Server]:
    """What `remix serve --engine fake` with these options serves."""
    engine = make_engine("fake", base, options)
    assert isinstance(engine, FakeEngine)
    app = create_app(engine, ServerSettings(), {})
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Server(app, engine, client)


@pytest.mark.parametrize(
    ("base", "options", "name"),
    [
        (None, {}, "fake-base"),
        ("/models/small", {}, "small"),
        ("org/small", {"served_model_name": "gpt-4o"}, "gpt-4o"),
        (None, {"served_model_name": "gpt-4o"}, "gpt-4o"),
    ],
)
async def test_its_name(base: str | None, options: dict[str, Any], name: str) -> None:
    async with fake(base, **options) as server:
        (model,) = (await server.client.get("/v1/models")).json()["data"]
        assert model["id"] == name
        assert (await server.chat(model=name, max_tokens=3)).json()["model"] == name


async def test_a_full_queue_says_when_to_come_again() -> None:
    async with fake(max_running=1, max_waiting=1, token_seconds=0.01) as server:
        body = {"ignore_eos": True, "max_tokens": 20}
        taken = [asyncio.create_task(server.complete(**body)) for _ in range(2)]
        await eventually(lambda: server.engine.stats().waiting == 1)
        refused = await server.complete(**body)
        assert check_error(refused, 503)["code"] == "busy"
        assert int(refused.headers["retry-after"]) >= 1
        assert [(await task).status_code for task in taken] == [200, 200]
        assert (await server.complete(**body)).status_code == 200


async def test_a_long_prompt_is_too_long() -> None:
    async with fake(max_model_len=40) as server:
        assert (await server.complete(prompt="x" * 20, max_tokens=20)).status_code == 200
        for answer in (
            await server.complete(prompt="x" * 40),
            await server.complete(prompt="x" * 41),
            await server.chat(messages=[{"role": "user", "content": "x" * 40}]),
        ):
            assert check_error(answer, 400)["code"] == "context_length_exceeded"
        assert (await server.client.get("/v1/models")).json()["data"][0]["max_model_len"] == 40


async def test_its_times_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with fake(prefill_seconds=7.0, token_seconds=3.0) as server:
        monkeypatch.setattr("remix_runtime.engines.fake.asyncio.sleep", sleep)
        await server.complete(max_tokens=3, ignore_eos=True)
    assert slept == [7.0, 3.0, 3.0, 3.0]


async def test_a_tenants_quota(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("acme", may_use_base=True, requests_per_minute=1)
        assert (await client.post("/v1/completions", json=complete("fake-base"))).status_code == 200
        refused = await client.post("/v1/completions", json=complete("fake-base"))
        assert check_error(refused, 429)["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) >= 1


@pytest.mark.parametrize("engine", ["embedded", "vllm"])
def test_others_need_a_base(engine: Any) -> None:
    with pytest.raises(ConfigError, match=rf"--base: the {engine} engine needs the folder"):
        make_engine(engine, None, {})


@pytest.mark.parametrize("option", ["dtype", "threads", "kv_cache_bytes", "tensor_parallel_size"])
def test_it_refuses_what_it_has_not(option: str) -> None:
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: the fake engine"):
        make_engine("fake", None, {option: 1})
