"""SIGTERM under load, in a process of its own: whoever was let in gets the whole answer."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.held import Held
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.served import FAKE, Served, served, tenants

TOKENS = 40
CHAT = [{"role": "user", "content": "Hello"}]
ENDS = {
    "/v1/completions": "data: [DONE]\n\n",
    "/v1/chat/completions": "data: [DONE]\n\n",
    "/v1/responses": "response.incomplete",
    "/v1/messages": "message_stop",
}
"""How a stream ends that is whole."""


def body_of(path: str, model: str, stream: bool) -> dict[str, Any]:
    common = {"model": model, "stream": stream, "ignore_eos": True}
    match path:
        case "/v1/completions":
            return {**common, "prompt": "Hello", "max_tokens": TOKENS}
        case "/v1/responses":
            return {**common, "input": "Hello", "max_output_tokens": TOKENS}
        case _:
            return {**common, "messages": CHAT, "max_tokens": TOKENS}


def check_whole(path: str, stream: bool, text: str) -> None:
    if stream:
        assert ENDS[path] in text[-3000:], text[-500:]
        assert '"error"' not in text.replace('"error":null', "")
        return
    usage = json.loads(text)["usage"]
    assert usage.get("completion_tokens", usage.get("output_tokens")) == TOKENS


async def drain_under_load(server: Served, models: list[str], key: str | None) -> None:
    """More than run at once, through all APIs; of each, one whose body is still to come."""
    requests = [
        (path, stream, model) for path in ENDS for stream in (True, False) for model in models
    ]
    async with AsyncExitStack() as stack:

        async def open_one() -> Held:
            held = await Held.open(server.url)
            stack.callback(held.writer.close)
            return held

        sent, halves = [], []
        for path, stream, model in requests:
            for group in (sent, halves):
                held = await open_one()
                assert await held.begin(path, body_of(path, model, stream), key) == 100
                group.append((path, stream, held))
        again = await open_one()
        assert (
            await again.begin("/v1/completions", body_of("/v1/completions", models[0], False), key)
            == 100
        )
        again.send()
        check_whole("/v1/completions", False, await again.finish())
        for _, _, held in sent:
            held.send()
        for _, _, held in halves:
            held.send(0, 10)
        server.process.send_signal(signal.SIGTERM)

        async with server.client(key) as client, asyncio.timeout(60):
            while (ready := await client.get("/ready")).status_code == 200:
                pass
        assert ready.json()["status"] == "draining"
        assert ready.headers["connection"] == "close"
        # The next request on a connection that is open, and one on a new connection.
        for held in (again, await open_one()):
            await held.begin("/v1/completions", body_of("/v1/completions", "x", False), key)
            held.send()
            assert "shutting down" in await held.finish()
            assert held.status == 503
            assert (held.headers["connection"], held.headers["retry-after"]) == ("close", "5")
        for _, _, held in halves:
            held.send(10)
        for path, stream, held in (*sent, *halves):
            text = await held.finish()
            assert held.status == 200, text
            check_whole(path, stream, text)
    assert await server.process.wait() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


def write_adapters(root: Path) -> None:
    for seed in range(2):
        made = random_checkpoint(tiny_model("llama"), seed=seed)
        write_checkpoint(root / f"a{seed}", made.config, made.layers, readme=f"# {seed}\n")


SIZES = ("--threads", "1", "--max-running", "2", "--max-waiting", "100", "--drain-seconds", "100")


async def test_a_single_users_server_drops_nothing(tmp_path: Path, base: Path) -> None:
    write_adapters(tmp_path)
    adapter = ("--adapter", f"a0={tmp_path / 'a0'}")
    async with served(tmp_path / "log", "--base", str(base), *SIZES, *adapter) as server:
        await drain_under_load(server, ["a0"], None)


@pytest.mark.slow
async def test_a_server_with_tenants_drops_nothing_and_no_load_of_an_adapter(
    tmp_path: Path, base: Path
) -> None:
    """Its adapters are loaded by the requests, and some of those come after the signal."""
    write_adapters(tmp_path)
    options = ("--base", str(base), *SIZES, "--import-root", str(tmp_path))
    data = tenants(tmp_path / "data")
    async with served(tmp_path / "log", *options, *data) as server:
        key = await server.tenant("acme", requests_per_minute=10_000, max_concurrent=1000)
        digests = {
            name: (await server.admin("POST", "/adapters", json={"source": name}))["digest"]
            for name in ("a0", "a1")
        }
        await server.admin("PUT", "/tenants/acme/set", json={"adapters": digests})
        assert await server.end() == 0
    async with served(tmp_path / "log", *options, *data) as server:
        await drain_under_load(server, ["a1", "a0"], key)


@pytest.mark.slow
async def test_a_second_signal_ends_at_once_and_tells_who_waits(tmp_path: Path) -> None:
    slow = ("--token-seconds", "0.05", "--max-model-len", "4096")
    async with served(tmp_path / "log", *FAKE, *slow, "--drain-delay-seconds", "600") as server:
        held = await Held.open(server.url)
        body = {**body_of("/v1/completions", "fake-base", True), "max_tokens": 3000}
        assert await held.begin("/v1/completions", body) == 100
        held.send()
        server.process.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            while (await client.get("/ready")).status_code == 200:
                pass
            # Load balancers may not have seen it yet.
            late = await client.post(
                "/v1/completions", json={**body, "max_tokens": 1, "stream": False}
            )
            assert (late.status_code, late.headers["connection"]) == (200, "close")
        server.process.send_signal(signal.SIGTERM)
        text = await held.finish()
        assert json.loads(text.split("data: ")[-1])["error"]["code"] == "busy"
        held.writer.close()
        assert await server.process.wait() == 0
