"""A served fake engine for the server's tests."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from remix_runtime.contracts import FinishReason, GenerationRequest, SamplingParams
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from server.app import create_app
from server.live.access import SINGLE_USER
from server.runner import bind, run
from server.services import Services
from server.settings import ServerSettings

BASE = "fake-base"
ADAPTERS = ("pirate", "haiku")


@dataclass
class Server:
    app: FastAPI
    engine: FakeEngine
    client: httpx.AsyncClient
    url: str = "http://test"

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services

    @property
    def digests(self) -> dict[str, str]:
        return dict(self.services.sets.live(SINGLE_USER).adapters)

    @property
    def prompt(self) -> str:
        """Of the newest request."""
        ids = self.engine.requests[-1].prompt_token_ids
        return self.engine.tokenizer.decode(ids, skip_special_tokens=False)

    async def complete(self, **body: Any) -> httpx.Response:
        body = {"model": BASE, "prompt": "Hello", **body}
        return await self.client.post("/v1/completions", json=body)

    async def chat(self, **body: Any) -> httpx.Response:
        body = {"model": BASE, "messages": [{"role": "user", "content": "Hello"}], **body}
        return await self.client.post("/v1/chat/completions", json=body)

    async def expect_good_request(self) -> None:
        """The server still answers, and holds nothing of what came before."""
        assert self.engine.stats().running == self.engine.stats().waiting == 0
        answer = await self.complete(max_tokens=5, temperature=0)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["text"]


def adapter_folders(root: Path, names: tuple[str, ...] = ADAPTERS) -> dict[str, Path]:
    """Folders that the fake engine takes for adapters, each with a digest of its own.

    The same in every run, and with them all texts: a drawn one may be too short to cut.
    """
    for name in names:
        (root / name).mkdir()
        (root / name / "adapter_config.json").write_text(json.dumps(name))
    return {name: root / name for name in names}


def make_app(
    root: Path, config: FakeConfig | None = None, **settings: Any
) -> tuple[FastAPI, FakeEngine, ServerSettings]:
    engine = FakeEngine(config)
    server_settings = ServerSettings(**{"port": 0, "log_level": "error", **settings})
    return create_app(engine, server_settings, adapter_folders(root)), engine, server_settings


@asynccontextmanager
async def serving(
    root: Path, config: FakeConfig | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """The app without a socket: what most tests need."""
    app, engine, _ = make_app(root, config, **settings)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield Server(app, engine, client)


@asynccontextmanager
async def listen(
    app: FastAPI,
    settings: ServerSettings,
    admin: tuple[FastAPI, socket.socket] | None = None,
) -> AsyncIterator[str]:
    """Any app under uvicorn on a free port, ended by SIGTERM. Yields its URL."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    listener = bind("127.0.0.1", 0)
    running = asyncio.create_task(
        run(app, settings, listener, on_ready=lambda _, url: ready.set_result(url), admin=admin)
    )
    await asyncio.wait({ready, running}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if running.done():
            await running
        yield ready.result()
    finally:
        if not running.done():
            signal.raise_signal(signal.SIGTERM)
        await running


@asynccontextmanager
async def listening(
    root: Path, config: FakeConfig | None = None, **settings: Any
) -> AsyncIterator[Server]:
    """The app around a fake engine on a real socket."""
    app, engine, server_settings = make_app(root, config, **settings)
    async with (
        listen(app, server_settings) as url,
        httpx.AsyncClient(base_url=url, timeout=120) as client,
    ):
        yield Server(app, engine, client, url)


def sse_events(text: str) -> list[dict[str, Any]]:
    """The JSON events of a stream that must end in [DONE]."""
    *events, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for what another task does; fails with `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - no event tells of it
            await asyncio.sleep(0.002)


async def greedy_text(
    engine: FakeEngine, prompt: str, max_tokens: int, adapter: str | None = None
) -> tuple[str, FinishReason | None]:
    """What the engine itself says, without the server."""
    request = GenerationRequest(
        request_id=secrets.token_hex(),
        prompt_token_ids=tuple(prompt.encode()),
        params=SamplingParams(max_tokens=max_tokens, temperature=0),
        digest=adapter,
    )
    events = [event async for event in engine.generate(request)]
    return "".join(event.text for event in events), events[-1].finish_reason
