"""Traces are off unless an endpoint is set; OpenTelemetry's variables are read; a wrong one is one
line, without the keys in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from remix_runtime.errors import ConfigError
from server.settings import ServerSettings
from server.tracing import make_tracing
from tests.otlp import Collector
from tests.unit.server.harness import serving

KEY = "sesame-open"


def variables(**given: str) -> dict[str, str]:
    return {f"OTEL_{name}": value for name, value in given.items()}


URL = "http://collector:4318"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        variables(EXPORTER_OTLP_ENDPOINT=" "),
        variables(EXPORTER_OTLP_ENDPOINT=URL, SDK_DISABLED="TRUE"),
        variables(EXPORTER_OTLP_ENDPOINT=URL, TRACES_EXPORTER="none"),
    ],
)
def test_off(environment: dict[str, str]) -> None:
    assert make_tracing(ServerSettings(), environment) is None


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        (variables(EXPORTER_OTLP_ENDPOINT=f"{URL}/"), f"{URL}/v1/traces"),
        (variables(EXPORTER_OTLP_TRACES_ENDPOINT=f"{URL}/mine"), f"{URL}/mine"),
        (
            variables(EXPORTER_OTLP_TRACES_ENDPOINT=f"{URL}/mine", EXPORTER_OTLP_ENDPOINT="x"),
            f"{URL}/mine",
        ),
    ],
)
def test_on(environment: dict[str, str], endpoint: str) -> None:
    made = make_tracing(ServerSettings(), environment)
    assert made is not None
    assert made._endpoint == endpoint


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"EXPORTER_OTLP_ENDPOINT": f"{KEY}:4317"}, "expected a URL as http://localhost:4318"),
        ({"EXPORTER_OTLP_PROTOCOL": "grpc"}, "found 'grpc', expected http/protobuf"),
        ({"TRACES_EXPORTER": "console"}, "found 'console', expected otlp or none"),
        ({"EXPORTER_OTLP_HEADERS": f"a=b,{KEY}"}, "expected name=value, several separated"),
        ({"EXPORTER_OTLP_TRACES_HEADERS": f"{KEY};a=b"}, "expected name=value"),
    ],
)
def test_a_wrong_variable_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        make_tracing(ServerSettings(), variables(**{"EXPORTER_OTLP_ENDPOINT": URL, **environment}))
    assert message in str(raised.value)
    assert KEY not in str(raised.value)
    assert str(raised.value).startswith("OTEL_")


async def test_the_collectors_key_is_sent(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, x-other=1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    async with serving(tmp_path) as server:
        await server.complete(max_tokens=2)
    assert collector.headers[0]["api-key"] == "a b"
    assert collector.resource["service.name"] == "ours"
    assert collector.requests[0].attributes["gen_ai.usage.output_tokens"] == 2


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    with pytest.raises(ConfigError, match=r"pip install 'remix-serve\[otel\]'"):
        make_tracing(ServerSettings(otlp_endpoint=URL), {})


def test_off_nothing_of_it_is_imported_and_fastapi_tells_nothing_of_its_own() -> None:
    """FastAPI imports the API alone. To a provider that somebody else has set for the process, its
    spans and logs would have the texts of wrong requests."""
    script = """
import asyncio, sys
import httpx
from server.app import create_app
from server.settings import ServerSettings
from remix_runtime.engines.fake import FakeConfig, FakeEngine
app = create_app(FakeEngine(FakeConfig()), ServerSettings(), {})
ours = ("opentelemetry.sdk", "opentelemetry.exporter", "server.http.spans")
print([name for name in sys.modules if name.startswith(ours)])

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def main():
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app):
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post("/v1/completions", json={"prompt": 1})).status_code

print(asyncio.run(main()), len(exporter.get_finished_spans()))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert answer.stdout == "[]\n400 0\n", answer.stderr
