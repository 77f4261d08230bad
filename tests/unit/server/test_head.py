"""HEAD is answered as GET without a body, on every path of both ports."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import httpx
import pytest

from tests.unit.admin.harness import KEY, administering
from tests.unit.admin.harness import listening as admin_listening
from tests.unit.server.harness import listening, serving
from tests.unit.server.tenants import all_paths

CHANGING = {"date", "content-length"}
"""The metrics' own length changes with the numbers in it."""


async def assert_head_is_get(client: httpx.AsyncClient, path: str) -> int:
    same = {"x-request-id": "the-same"}
    got = await client.get(path, headers=same)
    headed = await client.head(path, headers=same)
    assert headed.status_code == got.status_code, path
    assert headed.content == b"", path
    if "metrics" not in path:
        assert headed.headers == got.headers, path
    assert {*headed.headers} == {*got.headers}
    return got.status_code


async def test_every_path_of_the_api(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        paths = [*all_paths(server.app), "/v1/models/pirate", "/v1/models/nobody", "/nowhere"]
        found = {path: await assert_head_is_get(server.client, path) for path in paths}
        good = {
            "/version",
            "/tokenizer_info",
            "/",
            "/docs",
            "/health",
            "/ping",
            "/ready",
            "/metrics",
            "/v1/models",
            "/v1/models/pirate",
        }
        assert {path for path, status in found.items() if status == 200} == {
            *good,
            "/openapi.json",
        }
        assert found["/v1/completions"] == 405


async def test_every_path_of_the_admin_api(tmp_path: Path) -> None:
    async with administering(tmp_path) as admin:
        found = [await assert_head_is_get(admin.client, path) for path in all_paths(admin.app)]
        assert found.count(200) >= 5
        admin.client.headers.pop("Authorization")
        assert (await admin.client.head("/metrics")).status_code == 401


async def test_a_probe_that_says_no(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        server.services.gate.is_leaving = True
        assert (await server.client.head("/ready")).status_code == 503


async def raw(url: str, *requests: str) -> bytes:
    """What comes for requests on one connection, byte by byte."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for request in requests:
        writer.write(f"{request} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    writer.write(b"GET /end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    try:
        return await reader.read()
    finally:
        writer.close()


async def run(*command: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_on_a_socket(tmp_path: Path) -> None:
    async with listening(tmp_path) as server:
        answer = await raw(server.url, "HEAD /health", "HEAD /v1/models", "HEAD /")
        heads = answer.split(b"HTTP/1.1 ")[1:]
        assert [head[:3] for head in heads] == [b"200", b"200", b"200", b"404"]
        assert all(head.endswith(b"\r\n\r\n") for head in heads[:3]), "nothing but headers"


@pytest.mark.parametrize("tool", ["wget", "curl"])
async def test_tools_that_ask_with_head(tmp_path: Path, tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    command = ("wget", "--spider", "-q") if tool == "wget" else ("curl", "-sfI")
    async with listening(tmp_path) as server:
        for path in ("/health", "/ready", "/metrics", "/v1/models", "/"):
            assert (await run(*command, f"{server.url}{path}"))[0] == 0, path
        assert (await run(*command, f"{server.url}/nowhere"))[0] != 0


async def test_on_the_admin_port(tmp_path: Path) -> None:
    async with admin_listening(tmp_path) as admin:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=admin.url, headers=headers, timeout=120) as client:
            head = await client.head("/metrics")
            assert (head.status_code, head.content) == (200, b"")
