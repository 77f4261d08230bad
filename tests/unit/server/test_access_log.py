"""One line for each request: what it was, who asked, what it took; no secrets, no forged lines."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from remix_runtime.engines.fake import FakeConfig
from server.http.request import RequestMiddleware
from tests.unit.admin.harness import administering
from tests.unit.server.harness import Server, eventually, listening, serving
from tests.unit.server.tenants import tenant_serving
from tests.unit.server.test_sockets import open_request

KEY = "sesame-open"


def lines(caplog: pytest.LogCaptureFixture, level: str = "INFO") -> list[str]:
    found = [r for r in caplog.records if r.name == "server.access" and r.levelname == level]
    messages = [record.getMessage() for record in found]
    assert all(message.isprintable() and message.isascii() for message in messages)
    return messages


def fields(line: str) -> dict[str, str]:
    tokens = re.findall(r'(?:[^\s"]|"(?:[^"\\]|\\.)*")+', line)
    return dict(re.findall(r"^(\w+)=(.+)$", "\n".join(tokens), re.MULTILINE))


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="server")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_a_generation(
    server: Server, caplog: pytest.LogCaptureFixture, stream: bool, chat: bool
) -> None:
    body = {"model": "pirate", "stream": stream, "n": 2, "max_tokens": 7, "ignore_eos": True}
    answer = await (server.chat if chat else server.complete)(**body)
    (line,) = lines(caplog)
    path = "/v1/chat/completions" if chat else "/v1/completions"
    assert line.startswith(f"POST {path} 200 ")
    found = fields(line)
    times = {name: float(found.pop(name)) for name in ("queue", "first_token", "duration")}
    assert 0 <= times["queue"] <= times["first_token"] <= times["duration"]
    assert found == {
        "adapter": "pirate",
        "digest": server.digests["pirate"],
        "prompt_tokens": str(23 if chat else 5),
        "generated_tokens": "14",
        "id": answer.headers["x-request-id"],
    }


async def test_refusals_name_the_adapter_and_the_reason(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.complete(model="pirate", temperature=9)
    await server.complete(model="nobody")
    await server.chat(model="haiku", messages=[{"role": "user", "content": "x" * 600}])
    await server.client.get("/nowhere")
    found = [(line.split()[:3], fields(line)) for line in lines(caplog)]
    assert [head[2] for head, _ in found] == ["400", "404", "400", "404"]
    assert [f.get("adapter") for _, f in found] == ["pirate", "other", "haiku", None]
    assert [f["error"] for _, f in found] == [
        *("invalid_request_error", "model_not_found", "context_length_exceeded"),
        "invalid_request_error",
    ]
    assert all("generated_tokens" not in f for _, f in found)


async def test_what_only_looks_at_a_model_names_it_too(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.client.get("/v1/models/pirate")
    await server.client.post("/tokenize", json={"model": "pirate", "prompt": "a"})
    for line in lines(caplog):
        named = (fields(line)["adapter"], fields(line)["digest"])
        assert named == ("pirate", server.digests["pirate"])
    assert len(lines(caplog)) == 2


async def test_a_stream_that_fails_late(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    server.engine.fail_next_after = 2
    await server.complete(stream=True, max_tokens=9, ignore_eos=True)
    (line,) = lines(caplog)
    found = fields(line)
    assert line.split()[2] == "200"
    assert (found["error"], found["generated_tokens"]) == ("internal_error", "2")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    async with listening(tmp_path, FakeConfig(token_seconds=0.01), log_level="info") as server:
        client = await open_request(server, "/v1/completions", stream=stream)
        await eventually(lambda: server.engine.stats().kv_tokens_used > 3)
        client.transport.abort()
        await eventually(lambda: bool(lines(caplog)))
        (line,) = lines(caplog)
        assert line.split()[2] == ("200" if stream else "disconnected")
        assert fields(line)["error"] == "client_disconnected"
        assert int(fields(line)["generated_tokens"]) > 2


async def test_an_answer_that_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    """By a failure after its beginning, which nothing can answer any more."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        raise RuntimeError("torn")

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    with pytest.raises(RuntimeError, match="torn"):
        await RequestMiddleware(fail, access_log=True)(scope, receive_nothing, swallow)
    (line,) = lines(caplog)
    assert (line.split()[2], fields(line)["error"]) == ("200", "internal_error")


async def test_probes_are_quiet(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/health", "/ping", "/ready", "/metrics"):
        await server.client.get(path)
        await server.client.head(path)
    assert lines(caplog) == []
    assert len(lines(caplog, "DEBUG")) == 8
    assert lines(caplog, "DEBUG")[1].startswith("HEAD /health 200 ")


async def test_tenants(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with tenant_serving(tmp_path) as server:
        client = await server.tenant("acme")
        await server.put("acme", {"style": await server.adapter(1)})
        caplog.clear()
        body = {"model": "style", "prompt": "a", "max_tokens": 3}
        await client.post("/v1/completions", json=body)
        await (await server.client(key="rk-wrong")).post("/v1/completions", json=body)
        good, refused = (fields(line) for line in lines(caplog))
        assert (good["tenant"], good["adapter"]) == ("acme", "style")
        assert "tenant" not in refused
        assert refused["error"] == "invalid_api_key"


async def test_the_admin_api(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with administering(tmp_path) as admin:
        await admin.add_tenant("acme")
        (line,) = lines(caplog)
        assert line.startswith("POST /admin/v1/tenants 201 tenant=admin duration=")


async def test_no_secrets_and_no_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, api_key=KEY) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        await server.complete(prompt="the-secret-prompt", user="somebody")
        await server.client.get(f"/v1/models?key={KEY}")
        await server.client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}-wrong"})
    text = " ".join(lines(caplog) + lines(caplog, "DEBUG"))
    assert text.count("/v1/models") == 2
    assert not [s for s in (KEY, "the-secret-prompt", "somebody", "?") if s in text]


FORGED = "x 200\nPOST /v1/completions 200 tenant=acme"


@pytest.mark.parametrize(
    "path",
    [
        "/%0aPOST%20/v1%20200",
        "/a\nPOST /v1/completions 200 tenant=acme",
        "/\x1b[2J",
        "/\u2028",
        "/a b=c",
        '/"',
        "/" + "x" * 5000,
    ],
)
async def test_a_line_cannot_be_forged_by_a_path(
    server: Server, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    scope = {
        **{"type": "http", "method": "GET", "path": path, "raw_path": path.encode()},
        **{"query_string": b"", "headers": [], "root_path": "", "app": server.app},
    }
    await server.app(scope, receive_nothing, swallow)
    (line,) = lines(caplog)
    assert len(line) < 1000
    assert fields(line).keys() == {"duration", "error", "id"}
    assert re.fullmatch(r'GET ("(?:[^"\\]|\\.)*"|\S+) 404 duration=.*', line)


@pytest.mark.parametrize("model", [FORGED, "\x1b[2J", "\u2028x", "a=b"])
async def test_a_line_cannot_be_forged_by_a_model(
    server: Server, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    await server.complete(model=model)
    (line,) = lines(caplog)
    assert fields(line)["adapter"] == "other"


async def receive_nothing() -> Any:
    await asyncio.Event().wait()


async def swallow(message: Any) -> None:
    pass


async def test_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, access_log=False) as server:
        await server.expect_good_request()
    assert lines(caplog) == lines(caplog, "DEBUG") == []
