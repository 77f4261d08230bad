"""`remix serve` as a process beside a collector: spans arrive, the log is JSON to the last line,
and a collector that does not answer holds nothing up."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.otlp import Collector, collecting
from tests.system.processes import Process, eventually, serving

pytestmark = pytest.mark.system

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": "fake-base", "prompt": "Sentinel4711", "max_tokens": 30, "ignore_eos": True}
CHAT = {**BODY, "messages": [{"role": "user", "content": "Sentinel4711"}]}
del CHAT["prompt"]


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


def fake(folder: Path, *options: str, **environment: str) -> AbstractContextManager[Process]:
    fast = {"OTEL_BSP_SCHEDULE_DELAY": "200", **environment}
    given = ("--engine", "fake", "--log-format", "json", *options)
    return serving(*given, log=folder / "log", environment=fast)


def test_spans_of_all_kinds_arrive(tmp_path: Path, collector: Collector) -> None:
    slow = ("--token-seconds", "0.02")
    with fake(tmp_path, *slow, OTEL_EXPORTER_OTLP_ENDPOINT=collector.url) as server:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            parent = {"traceparent": f"00-{TRACE}-{SPAN}-01", "x-request-id": "mine"}
            client.post("/v1/chat/completions", json=CHAT, headers=parent)
            client.post("/v1/completions", json={**BODY, "stream": True})
            client.post("/v1/completions", json={**BODY, "model": "nobody"})
            with client.stream("POST", "/v1/completions", json={**BODY, "stream": True}) as answer:
                next(answer.iter_lines())
        eventually(lambda: len(collector.requests) == 4)
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    chat, stream, refused, left = collector.requests
    assert [span.name for span in (chat, stream, refused, left)] == [
        *("chat fake-base", "text_completion fake-base"),
        *("text_completion", "text_completion fake-base"),
    ]
    assert (chat.trace_id, chat.parent_id) == (TRACE, SPAN)
    assert chat.attributes["remix.request_id"] == "mine"
    assert stream.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert stream.attributes["gen_ai.usage.output_tokens"] == 30
    assert [phase.name for phase in collector.phases(stream)] == ["queue", "prefill", "decode"]
    assert refused.attributes["error.type"] == "model_not_found"
    assert left.attributes["error.type"] == "client_disconnected"
    assert 0 < left.attributes["gen_ai.usage.output_tokens"] < 30
    assert not any(span.failed for span in collector.requests)
    assert b"Sentinel4711" not in b"".join(collector.bodies)
    [end] = [line for line in lines if line.get("request_id") == "mine"]
    assert (end["trace_id"], end["status"], end["generated_tokens"]) == (TRACE, 200, 30)
    assert "Sentinel4711" not in json.dumps(lines)


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_collector_that_does_not_answer(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        if kind == "refuses":
            silent.close()
        with fake(tmp_path, "--otlp-endpoint", f"http://127.0.0.1:{port}") as server:
            for _ in range(50):
                answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, "max_tokens": 2})
                assert answer.status_code == 200
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 30  # of which the flush has 3
            lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert "the last traces are lost" in lines[-1]["message"]
    assert len([line for line in lines if line["logger"].startswith("opentelemetry")]) <= 3


def test_a_bad_variable_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}
    with (
        pytest.raises(AssertionError),
        serving("--engine", "fake", log=log, environment=variables),
    ):
        pass
    expected = "error: OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL as http://localhost:4318\n"
    assert log.read_text().endswith(expected)
