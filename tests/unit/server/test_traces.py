"""Traces: a span for each request, by the conventions, in the caller's trace; no secrets, no texts;
and no server that waits for a collector."""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from remix_runtime.engines.fake import FakeConfig
from remix_runtime.errors import AdapterUnavailableError
from server import tracing
from tests.otlp import Collector, Received
from tests.unit.server.harness import eventually, listening, serving
from tests.unit.server.tenants import tenant_serving
from tests.unit.server.test_sockets import open_request

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
KEY = "sesame-open"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


def only(collector: Collector) -> Received:
    [span] = collector.requests
    return span


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", [False, True])
async def test_a_generation(tmp_path: Path, collector: Collector, stream: bool, chat: bool) -> None:
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        digest = server.digests["pirate"]
        body = {"max_tokens": 7, "ignore_eos": True, "temperature": 0.5, "seed": 3, "n": 2}
        ask = server.chat if chat else server.complete
        answer = await ask(model="pirate", stream=stream, top_p=0.9, **body)
    assert collector.paths == ["/v1/traces"]
    assert collector.resource["service.name"] == "remix-serve"
    span = only(collector)
    assert not span.failed
    assert not span.parent_id
    operation = "chat" if chat else "text_completion"
    assert span.name == f"{operation} pirate"
    path = "/v1/chat/completions" if chat else "/v1/completions"
    found = dict(span.attributes)
    queue = found.pop("remix.queue_seconds")
    first = found.pop("gen_ai.response.time_to_first_chunk", None)
    assert (first is not None) == stream
    assert 0 <= queue <= (first or 60)
    assert found == {
        **{"http.request.method": "POST", "url.scheme": "http", "url.path": path},
        **{"http.route": path, "http.response.status_code": 200},
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "remix-serve",
        "gen_ai.request.model": "pirate",
        "gen_ai.response.model": "pirate",
        **{"gen_ai.request.max_tokens": 7, "gen_ai.request.temperature": 0.5},
        **{"gen_ai.request.top_p": 0.9, "gen_ai.request.seed": 3},
        "gen_ai.request.choice.count": 2,
        **({"gen_ai.request.stream": True} if stream else {}),
        "gen_ai.response.finish_reasons": ["length", "length"],
        "gen_ai.usage.input_tokens": 23 if chat else 5,
        "gen_ai.usage.output_tokens": 14,
        "remix.request_id": answer.headers["x-request-id"],
        "remix.adapter": "pirate",
        "remix.digest": digest,
    }


async def test_phases_of_a_generation(tmp_path: Path, collector: Collector) -> None:
    config = FakeConfig(max_running=1, prefill_seconds=0.05, token_seconds=0.02)
    async with serving(tmp_path, config, otlp_endpoint=collector.url) as server:
        await server.complete(max_tokens=4, ignore_eos=True)
    span = only(collector)
    queue, prefill, decode = collector.phases(span)
    assert [phase.name for phase in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert {phase.trace_id for phase in (queue, prefill, decode)} == {span.trace_id}
    assert span.begin <= queue.begin <= queue.end <= prefill.begin <= prefill.end
    assert prefill.end <= decode.begin <= decode.end <= span.end
    assert prefill.end - prefill.begin >= 0.049e9
    assert decode.end - decode.begin >= 3 * 0.019e9


async def test_cached_tokens_count_once_for_a_prompt(tmp_path: Path, collector: Collector) -> None:
    config = FakeConfig(cached_tokens=5)
    async with serving(tmp_path, config, otlp_endpoint=collector.url) as server:
        await server.complete(n=3, max_tokens=2, prompt=["Hello there", "Hello, you"])
    found = only(collector).attributes
    assert found["gen_ai.usage.cache_read.input_tokens"] == 2 * 5
    assert found["gen_ai.request.choice.count"] == 3


@pytest.mark.parametrize("works", [True, False])
async def test_a_wait_for_an_adapter(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    async def load(digest: str, tenant: str) -> None:
        await asyncio.sleep(0.02)
        if not works:
            raise AdapterUnavailableError("gone", digest=digest)

    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        monkeypatch.setattr(server.services.adapters, "load_for_request", load)
        await server.complete(model="pirate", max_tokens=2)
    span = only(collector)
    first, *others = collector.phases(span)
    assert (first.name, first.end - first.begin >= 0.019e9) == ("load adapter", True)
    assert [phase.name for phase in others] == ["queue", "prefill", "decode"] * works
    assert span.failed == (not works)
    if not works:
        assert span.attributes["error.type"] == "model_unavailable"
        assert span.attributes["http.response.status_code"] == 503


@pytest.mark.parametrize(
    ("body", "status", "error", "failed"),
    [
        ({"temperature": 9}, 400, "invalid_request_error", False),
        ({"model": "nobody"}, 404, "model_not_found", False),
        ({"prompt": "x" * 600}, 400, "context_length_exceeded", False),
    ],
)
async def test_refusals(
    tmp_path: Path,
    collector: Collector,
    body: dict[str, Any],
    status: int,
    error: str,
    failed: bool,
) -> None:
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        await server.complete(**body)
    span = only(collector)
    found = span.attributes
    assert (found["http.response.status_code"], found["error.type"]) == (status, error)
    assert span.failed == failed
    assert "gen_ai.usage.output_tokens" not in found
    if "model" in body:
        assert span.name == "text_completion"
        assert "gen_ai.request.model" not in found


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_the_servers(tmp_path: Path, collector: Collector, stream: bool) -> None:
    """Also where the answer had begun, and its status was 200."""
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        server.engine.fail_next_after = 2
        await server.complete(stream=stream, max_tokens=9, ignore_eos=True)
    span = only(collector)
    assert span.failed
    assert span.attributes["error.type"] == "internal_error"
    assert span.attributes["http.response.status_code"] == (200 if stream else 500)
    assert span.attributes["gen_ai.usage.output_tokens"] == 2
    assert "gen_ai.response.finish_reasons" not in span.attributes


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(tmp_path: Path, collector: Collector, stream: bool) -> None:
    config = FakeConfig(token_seconds=0.01)
    async with listening(tmp_path, config, otlp_endpoint=collector.url) as server:
        client = await open_request(server, "/v1/completions", stream=stream)
        await eventually(lambda: server.engine.stats().kv_tokens_used > 3)
        client.transport.abort()
        await eventually(lambda: server.engine.stats().running == 0)
    span = only(collector)
    assert not span.failed
    assert span.attributes["error.type"] == "client_disconnected"
    assert span.attributes.get("http.response.status_code") == (200 if stream else None)
    assert span.attributes["gen_ai.usage.output_tokens"] > 2
    assert [phase.name for phase in collector.phases(span)] == ["queue", "prefill", "decode"]


async def test_the_callers_trace_goes_on(tmp_path: Path, collector: Collector) -> None:
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        await server.client.get("/v1/models", headers={"traceparent": PARENT})
    span = only(collector)
    assert (span.trace_id, span.parent_id, span.name) == (TRACE, SPAN, "GET /v1/models")


@pytest.mark.parametrize(
    "headers",
    [
        [("traceparent", "")],
        [("traceparent", "00-abc-def-01")],
        [("traceparent", PARENT.upper())],
        [("traceparent", f"00-{'0' * 32}-{SPAN}-01")],
        [("traceparent", f"ff-{TRACE}-{SPAN}-01")],
        [("traceparent", f"{PARENT}-more")],
        [("traceparent", f"cc-{TRACE}-{SPAN}-01-{'x' * 2000}")],
        [("traceparent", PARENT), ("traceparent", PARENT)],
        [("traceparent", "\u2028".encode())],
    ],
)
async def test_a_parent_that_is_none_is_ignored(
    tmp_path: Path,
    collector: Collector,
    headers: list[tuple[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        assert (await server.client.get("/v1/models", headers=headers)).status_code == 200
    span = only(collector)
    assert (span.trace_id != TRACE, span.parent_id) == (True, "")
    assert [record for record in caplog.records if "traceparent" in record.getMessage()] == []


async def test_who_samples(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        await server.complete(max_tokens=3)
        await server.client.get("/v1/models", headers={"traceparent": PARENT})
        await server.client.get("/v1/models", headers={"traceparent": PARENT[:-1] + "0"})
    assert only(collector).trace_id == TRACE


async def test_probes_have_no_spans(tmp_path: Path, collector: Collector) -> None:
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        for path in ("/health", "/ping", "/ready", "/metrics", "/nowhere"):
            await server.client.get(path)
    span = only(collector)
    assert (span.name, span.attributes["url.path"]) == ("GET", "/nowhere")


async def test_tenants_and_the_admin_api(tmp_path: Path, collector: Collector) -> None:
    async with tenant_serving(tmp_path, otlp_endpoint=collector.url) as server:
        client = await server.tenant("acme", may_use_base=True)
        await client.post("/v1/completions", json={"model": "fake-base", "prompt": "a"})
        await client.post("/v1/completions", json={"model": "style", "prompt": "a"})
    *admin, good, refused = collector.requests
    assert "PUT /admin/v1/tenants/{tenant}/quota" in [span.name for span in admin]
    assert {span.attributes["remix.tenant"] for span in admin} == {"admin"}
    named = [good.attributes[f"remix.{name}"] for name in ("tenant", "adapter")]
    assert named == ["acme", "fake-base"]
    assert (refused.name, refused.attributes["remix.adapter"]) == ("text_completion", "other")


@pytest.mark.parametrize("parent", ["", SPAN])
async def test_what_the_admin_asks_as_a_tenant_is_one_trace(
    tmp_path: Path, collector: Collector, parent: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Two spans: the admin's, and below it the tenant's with the generation."""
    headers = {"traceparent": PARENT, "tracestate": "a=b"} if parent else {}
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "fake-base", "messages": messages, "max_tokens": 2}
    async with tenant_serving(tmp_path, otlp_endpoint=collector.url) as server:
        await server.tenant("acme", may_use_base=True)
        path = "/admin/v1/tenants/acme/chat/completions"
        with caplog.at_level(logging.INFO, "server.access"):
            answer = await server.admin.post(path, json=body, headers=headers)
        assert answer.status_code == 200
    *_, outer, inner = collector.requests
    assert (outer.attributes["remix.tenant"], outer.parent_id) == ("admin", parent)
    assert (inner.attributes["remix.tenant"], inner.name) == ("acme", "chat fake-base")
    assert (inner.trace_id, inner.parent_id) == (outer.trace_id, outer.span_id)
    assert (outer.trace_id == TRACE) == bool(parent)
    assert [phase.name for phase in collector.phases(inner)] == ["queue", "prefill", "decode"]
    ids = {span.attributes["remix.request_id"] for span in (outer, inner)}
    assert ids == {answer.headers["x-request-id"]}
    assert caplog.text.count(f" trace={outer.trace_id}") == 2


async def test_no_secrets_and_no_texts(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is wrong with a request, and wherever a client puts it."""
    secret = "Sentinel4711"
    headers = {
        **dict.fromkeys(("user-agent", "cookie", "x-api-key", "baggage", "referer"), secret),
        "tracestate": f"vendor={secret}",
        "traceparent": PARENT,
    }
    bodies: list[Any] = [
        {"model": "pirate", "prompt": secret, "user": secret, "stop": secret, "max_tokens": 2},
        {"model": secret, "prompt": "a"},
        {"model": "pirate", "prompt": secret, "temperature": secret},
        {"model": "pirate", "prompt": [secret, 1]},
        {"model": "pirate", "prompt": secret * 200},
        {secret: 1},
    ]
    async with serving(tmp_path, otlp_endpoint=collector.url, api_key=KEY) as server:
        server.client.headers["Authorization"] = f"Bearer {KEY}"
        post = server.client.post
        for body in bodies:
            del headers["x-api-key"]
            await post(f"/v1/completions?key={secret}", json=body, headers=headers)
            headers["x-api-key"] = secret
            await post(f"/v1/completions?key={secret}", json=body, headers=headers)
        await post("/v1/completions", content=f'{{"prompt": "{secret}'.encode())
        await post("/v1/chat/completions", json={"model": "pirate", "messages": secret})
    assert len(collector.requests) == 14
    sent = b"".join(collector.bodies)
    assert secret.encode() not in sent
    assert KEY.encode() not in sent
    assert secret not in caplog.text


async def test_log_lines_name_their_trace(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="server")
    async with serving(tmp_path, otlp_endpoint=collector.url) as server:
        await server.client.get("/v1/models", headers={"traceparent": PARENT})
    assert f" trace={TRACE}" in caplog.text


async def test_a_collector_that_is_not_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, answers nothing
        url = f"http://user:{KEY}@127.0.0.1:{silent.getsockname()[1]}"
        async with serving(tmp_path, otlp_endpoint=url) as server:
            await server.expect_good_request()
            began = monotonic()
        assert monotonic() - began < 20
    assert "the last traces are lost: 127.0.0.1 did not take them" in caplog.text
    assert KEY not in caplog.text


async def test_many_spans_for_nobody_are_bounded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.1)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with serving(tmp_path, otlp_endpoint=url) as server:
            for _ in range(40):
                assert (await server.client.get("/v1/models")).status_code == 200
    assert len([r for r in caplog.records if r.name.startswith("opentelemetry")]) < 5
