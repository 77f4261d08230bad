"""What needs a real socket: clients that go away, SIGTERM, the command line."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import sys
from collections import Counter
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from remix_runtime.cli import build_app
from remix_runtime.engines.fake import FakeConfig
from server.http.connection import BoundedConnection
from server.runner import with_short_waits, without_long_collections
from tests.unit.server.connections import PATIENCE
from tests.unit.server.harness import BASE, Server, eventually, listening

SLOW = FakeConfig(max_running=1, max_waiting=4, prefill_seconds=0.0, token_seconds=0.01)
SLOW_PREFILL = FakeConfig(max_running=1, max_waiting=4, prefill_seconds=30.0)


async def open_request(server: Server, path: str, **body: Any) -> asyncio.StreamWriter:
    """Sends a request and reads nothing."""
    url = httpx.URL(server.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    chat = {"messages": [{"role": "user", "content": "a"}]}
    fields = {"model": BASE, **(chat if "chat" in path else {"prompt": "a"})}
    content = json.dumps({**fields, "max_tokens": 400, "ignore_eos": True, **body}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return writer


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["queue", "prefill", "decode"])
async def test_disconnect_aborts(tmp_path: Path, path: str, stream: bool, stage: str) -> None:
    config = SLOW_PREFILL if stage == "prefill" else SLOW
    async with listening(tmp_path, config) as server:
        engine = server.engine
        blocker = await open_request(server, path) if stage == "queue" else None
        if blocker:
            await eventually(lambda: engine.stats().running == 1)
        client = await open_request(server, path, stream=stream, n=2)
        if stage == "queue":
            await eventually(lambda: engine.stats().waiting == 2)
        elif stage == "prefill":
            await eventually(lambda: engine.stats().running == 1)
        else:
            await eventually(lambda: engine.stats().kv_tokens_used > 20)

        client.transport.abort()

        await eventually(lambda: len(engine.aborted) == 2)
        assert engine.stats().waiting == 0
        assert engine.stats().running == (1 if blocker else 0)
        if blocker:
            blocker.transport.abort()
        await eventually(lambda: engine.stats().running == 0)
        metrics = (await server.client.get("/metrics")).text
        assert 'type="client_disconnected"} ' in metrics
        if stage != "prefill":
            await server.expect_good_request()


async def test_half_a_request_holds_nothing(tmp_path: Path) -> None:
    async with listening(tmp_path) as server:
        url = httpx.URL(server.url)
        _, writer = await asyncio.open_connection(url.host, url.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n")
        writer.write(b'Content-Type: application/json\r\n\r\n{"model": ')
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await server.expect_good_request()
        assert len(server.engine.requests) == 1
        metrics = (await server.client.get("/metrics")).text
        assert 'endpoint="completions",status="disconnected",tenant=""} 1.0' in metrics
        assert 'type="client_disconnected"} 1.0' in metrics


async def test_sigterm_lets_running_requests_finish(tmp_path: Path) -> None:
    async with listening(tmp_path, SLOW, drain_seconds=20) as server:
        running = asyncio.create_task(server.complete(max_tokens=60, ignore_eos=True))
        streaming = asyncio.create_task(
            server.complete(max_tokens=20, ignore_eos=True, stream=True)
        )
        await eventually(lambda: server.engine.stats().waiting == 1)

        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: server.services.gate.closed)

        assert (await server.client.get("/ready")).status_code == 503
        assert (await server.client.get("/health")).status_code == 200
        refused = await server.complete()
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert (await running).json()["usage"]["completion_tokens"] == 60
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        assert server.engine.aborted == []


async def test_what_outlives_the_drain_gets_an_error(tmp_path: Path) -> None:
    async with listening(tmp_path, SLOW, drain_seconds=0.2) as server:
        body = {"max_tokens": 400, "ignore_eos": True}
        streaming = asyncio.create_task(server.complete(**body, stream=True))
        await eventually(lambda: server.engine.stats().running == 1)
        waiting = asyncio.create_task(server.complete(**body))
        await eventually(lambda: server.engine.stats().waiting == 1)
        signal.raise_signal(signal.SIGTERM)
        answer = await waiting
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
        last = (await streaming).text.split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "busy"


async def test_second_signal_ends_the_drain(tmp_path: Path) -> None:
    async with listening(tmp_path, SLOW, drain_seconds=600) as server:
        client = await open_request(server, "/v1/completions")
        await eventually(lambda: server.engine.stats().running == 1)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: server.services.gate.closed)
        signal.raise_signal(signal.SIGTERM)
        await eventually(lambda: server.engine.stats().running == 0)
        client.close()


async def test_two_signals_at_once_end_the_server(tmp_path: Path) -> None:
    async with listening(tmp_path, SLOW, drain_seconds=600) as server:
        client = await open_request(server, "/v1/completions")
        await eventually(lambda: server.engine.stats().running == 1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        await eventually(lambda: server.engine.stats().running == 0)
        client.close()


async def test_signals_while_the_engine_stops_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(tmp_path, drain_seconds=600) as server:
        stop, stopping, go_on = server.engine.stop, asyncio.Event(), asyncio.Event()

        async def slow_stop(*, drain_seconds: float = 0.0) -> None:
            stopping.set()
            await go_on.wait()
            await stop(drain_seconds=drain_seconds)

        monkeypatch.setattr(server.engine, "stop", slow_stop)
        signal.raise_signal(signal.SIGTERM)
        await stopping.wait()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0.05)
        go_on.set()
    # Leaving the context waits for the server's end.


async def test_many_connections_are_allowed_where_a_shell_allows_few(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        async with listening(tmp_path):
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_was_loaded_is_collected_no_more_while_it_serves() -> None:
    gc.unfreeze()
    with without_long_collections() as settle:
        settle()
        assert gc.get_freeze_count() > len(gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_threads_let_others_go_on_soon_while_it_serves() -> None:
    before = sys.getswitchinterval()
    with with_short_waits():
        assert sys.getswitchinterval() < before / 5
    assert sys.getswitchinterval() == before


async def start_process(*options: str, **environment: str) -> asyncio.subprocess.Process:
    code = "from remix_runtime.cli import main; main()"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, "serve", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environment},
    )


async def test_command_serves_and_drains_with_exit_code_0(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    process = await start_process(
        *("--base", "org/small", "--engine", "fake", "--port", "0"),
        *("--adapter", f"pirate={tmp_path}", "--token-seconds", "0.02"),
        REMIX_API_KEY="sesame-open",
    )
    assert process.stdout is not None
    first = (await process.stdout.readline()).decode()
    hint = (await process.stdout.readline()).decode()
    assert first.startswith("Serving small, pirate at http://127.0.0.1:")
    url = first.split()[-1]
    assert hint.startswith(f"Try: curl {url}/v1/chat/completions")
    assert "$REMIX_API_KEY" in hint
    assert "sesame-open" not in hint
    headers = {"Authorization": "Bearer sesame-open"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as client:
        body = {"model": "pirate", "prompt": "a", "max_tokens": 30, "ignore_eos": True}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        named = {"json": body | options, "headers": {"x-request-id": "mine"}}
        async with client.stream("POST", "/v1/completions", **named) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            events = [line async for line in lines if line]
        assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 30
    _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors
    # A container's log is no terminal: what takes long is told there before it is done.
    logged = errors.decode().splitlines()
    assert logged[0] == "INFO: server.commands: loading the fake engine with org/small"
    steps = (
        "starting the engine",
        "the engine serves small",
        "loading adapter pirate",
        "pirate is",
    )
    begun = [next(i for i, line in enumerate(logged) if step in line) for step in steps]
    assert begun == sorted(begun)
    (access,) = [line for line in logged if "server.access" in line]
    assert access.startswith("INFO: server.access: POST /v1/completions 200 adapter=pirate ")
    assert access.endswith(" id=mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter", "pirate"], "expected NAME=DIR"),
        (["--adapter", "a b=x"], "expected up to 64 letters"),
        (["--adapter", "=x"], "name: found ''"),
        (["--adapter", "a=x", "--adapter", "a=y"], "given twice"),
        (["--adapter", "small=x"], "the base model's name"),
        (["--adapter", "pirate=/nowhere"], "adapter 'pirate' in /nowhere"),
        (["--port", "70000"], "port (environment: REMIX_PORT)"),
        (["--api-key", ""], "api_key (environment: REMIX_API_KEY)"),
        (["--log-level", "loud"], "expected one of critical"),
        (["--drain-seconds", "-1"], "drain_seconds"),
        (["--host", "256.0.0.1"], "cannot listen on 256.0.0.1"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str) -> None:
    app = build_app(entry_points(group="remix.commands", name="serve"))
    result = CliRunner().invoke(
        app, ["serve", "--base", "org/small", "--engine", "fake", "--port", "0", *options]
    )
    assert result.exit_code == 1
    *steps, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert all(step.startswith("INFO: ") for step in steps)


def test_port_in_use_is_known_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        app = build_app(entry_points(group="remix.commands", name="serve"))
        result = CliRunner().invoke(app, ["serve", "--base", "/nowhere", "--port", port])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(f"error: cannot listen on 127.0.0.1:{port}")


async def test_many_who_connect_at_once_are_taken_in_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many, few = 300, 20
    turn, taken = 0, Counter[int]()
    connection_made = BoundedConnection.connection_made

    def counted(connection: BoundedConnection, transport: asyncio.Transport) -> None:
        taken[turn] += 1
        connection_made(connection, transport)

    monkeypatch.setattr(BoundedConnection, "connection_made", counted)
    async with listening(tmp_path) as server:
        url = httpx.URL(server.url)
        # All at once: nothing of this awaits.
        clients = [socket.create_connection((url.host, url.port), PATIENCE) for _ in range(many)]
        for client in clients:
            client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            client.setblocking(False)

        async def answer(client: socket.socket) -> bytes:
            reader, writer = await asyncio.open_connection(sock=client)
            try:
                return await reader.read()
            finally:
                writer.close()

        async with asyncio.timeout(PATIENCE):
            answers = asyncio.gather(*map(answer, clients))
            while not answers.done():
                turn += 1
                await asyncio.sleep(0)
    assert all(told.startswith(b"HTTP/1.1 200 ") for told in answers.result())
    assert max(taken.values()) <= few
    assert taken.total() == many
