"""Requests to a tenant's models through the admin API are the tenant's own, without its key."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Scope

from remix_runtime.engines.fake import FakeConfig
from tests.unit.admin.harness import API, KEY, Admin
from tests.unit.server.tenants import ADMIN_KEY, tenant_serving
from tests.unit.server.test_bad_input import check_error

CHAT = f"{API}/tenants/acme/chat/completions"


def chat(model: str = "pirate", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Hello"}]
    return {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0, **more}


@pytest.fixture
async def digest(admin: Admin) -> str:
    """Of the tenant's adapter `pirate`."""
    await admin.add_tenant()
    found = await admin.add_adapter()
    (await admin.put_set({"pirate": found})).raise_for_status()
    return found


async def test_the_answer_is_the_tenants(admin: Admin, digest: str) -> None:
    asked = (await admin.client.post(CHAT, json=chat())).raise_for_status().json()
    assert asked["system_fingerprint"] == digest
    models = (await admin.client.get(f"{API}/tenants/acme/models")).raise_for_status().json()
    async with admin.as_tenant(await admin.add_key()) as client:
        own = (await client.post("/v1/chat/completions", json=chat())).json()
        assert own["choices"] == asked["choices"]
        assert (await client.get("/v1/models")).json() == models


async def test_it_streams(admin: Admin, digest: str) -> None:
    async with admin.client.stream("POST", CHAT, json=chat(stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    assert len(lines) > 4
    assert lines[-1] == "data: [DONE]"


async def test_it_counts_in_the_tenants_quota_and_metrics(admin: Admin, digest: str) -> None:
    quota = {"requests_per_minute": 2}
    (await admin.client.put(f"{API}/tenants/acme/quota", json=quota)).raise_for_status()
    async with admin.as_tenant(await admin.add_key()) as client:
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 200
        assert (await admin.client.post(CHAT, json=chat())).status_code == 200
        refused = await admin.client.post(CHAT, json=chat())
        check_error(refused, 429)
        assert int(refused.headers["retry-after"]) > 0
        assert (await client.post("/v1/chat/completions", json=chat())).status_code == 429
    text = (await admin.client.get("/metrics")).text
    labels = 'adapter="pirate",endpoint="chat",status="{}",tenant="acme"'
    for status in ("200", "429"):
        assert f"remix_requests_total{{{labels.format(status)}}} 2.0" in text


async def test_what_the_tenant_may_not_the_admin_may_not_as_the_tenant(
    admin: Admin, digest: str
) -> None:
    await admin.add_tenant("other")
    for path, model in ((CHAT, "fake-base"), (CHAT, "nothing")):
        check_error(await admin.client.post(path, json=chat(model)), 404)
    others = f"{API}/tenants/other/chat/completions"
    check_error(await admin.client.post(others, json=chat()), 404)
    for path in ("chat/completions", "models"):
        method = "GET" if path == "models" else "POST"
        body = None if path == "models" else chat()
        answer = await admin.client.request(method, f"{API}/tenants/nobody/{path}", json=body)
        check_error(answer, 404)
        assert "nobody" in answer.text


async def test_malformed_bodies_are_refused_by_the_data_api(admin: Admin, digest: str) -> None:
    check_error(await admin.client.post(CHAT, json={"model": "pirate"}), 400)
    check_error(await admin.client.post(CHAT, json=chat(temperature="x")), 400)
    check_error(await admin.client.post(CHAT, content=b"{}"), 415)
    too_large = await admin.client.post(CHAT, json=chat(user="x" * (5 << 20)))
    check_error(too_large, 413)


async def test_one_id_names_both_lines_of_the_log_and_no_key_is_in_them(
    admin: Admin, digest: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "server.access"):
        answer = await admin.client.post(CHAT, json=chat(), headers={"x-request-id": "mine"})
    assert answer.headers.get_list("x-request-id") == ["mine"]
    lines = [r.getMessage() for r in caplog.records if "id=mine" in r.getMessage()]
    assert [("tenant=acme" in line, "tenant=admin" in line) for line in lines] == [
        (True, False),
        (False, True),
    ]
    assert KEY not in caplog.text


async def test_no_header_makes_a_request_another_tenants(admin: Admin, digest: str) -> None:
    """Only this process says on whose behalf a request is."""
    headers = {"remix.on_behalf_of": "acme", "Remix-On-Behalf-Of": "acme", "Host": "localhost"}
    transport = httpx.ASGITransport(admin.apps.data)
    async with httpx.AsyncClient(transport=transport, base_url="http://data") as client:
        for given in (headers, {**headers, "Authorization": f"Bearer {KEY}"}):
            answer = await client.get("/v1/models", headers=given)
            assert answer.status_code == 401


async def test_a_client_that_leaves_ends_the_generation(tmp_path: Path) -> None:
    async with tenant_serving(tmp_path, FakeConfig(token_seconds=0.02)) as server:
        await server.tenant("acme")
        await server.put("acme", {"pirate": await server.adapter(0)})
        gone = asyncio.Event()
        request = httpx.Request(
            "POST", f"http://admin{CHAT}", json=chat(stream=True, max_tokens=400, ignore_eos=True)
        )
        body = [request.read()]

        async def receive() -> Message:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if b"data:" in message.get("body", b""):
                gone.set()

        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": CHAT,
            "raw_path": CHAT.encode(),
            "query_string": b"",
            "headers": [
                (b"authorization", f"Bearer {ADMIN_KEY}".encode()),
                (b"content-type", b"application/json"),
            ],
            "server": ("admin", 80),
            "client": ("127.0.0.1", 1),
        }
        async with asyncio.timeout(60):
            await server.apps.admin(scope, receive, send)
        assert len(server.engine.aborted) == 1
