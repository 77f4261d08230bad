"""Traces: whether there are some, where they go, and how they end.

OpenTelemetry's own variables say the rest; its packages are an extra, imported only where an
endpoint is set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from remix_runtime.errors import ConfigError
from remix_runtime.extras import missing_extra
from server.settings import ServerSettings

if TYPE_CHECKING:
    from server.http.request import Spans

log = logging.getLogger(__name__)

SERVICE = "remix-serve"
FLUSH_SECONDS = 3.0
"""Seconds that the last spans have to reach the collector when the server stops."""
QUIET_SECONDS = 60.0
"""Seconds between two lines about spans that cannot be sent."""

_OWN, _TRACES, _ALL = (
    "REMIX_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
)
_HEADER = re.compile(r"\s*[!#-'*+.0-9A-Z^-z|~-]+\s*=[ !#-+.-:<-\[\]-~-]*")
"""As OpenTelemetry reads one. What is not, it would write into the log, with the key in it."""


class Tracing:
    """The spans of one server, and their way to the collector: a thread of the SDK's sends them in
    batches from a bounded queue. Where it cannot, the oldest are lost, and nobody waits for it."""

    def __init__(self, endpoint: str) -> None:
        """`endpoint`: the whole URL. Raises `ConfigError`."""
        try:
            import opentelemetry.exporter.otlp.proto.http  # noqa: F401 - whether it is there
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            package = "opentelemetry-sdk and its OTLP exporter"
            raise missing_extra("traces", "otel", package) from error
        from server.http.spans import RequestSpans

        named = Resource.create()
        if str(named.attributes["service.name"]).startswith("unknown_service"):
            named = named.merge(Resource({"service.name": SERVICE}))
        own = Resource({"service.version": version("remix-serve")})
        # No handler at exit: `exporting` ends it, within its time.
        self._provider = TracerProvider(resource=own.merge(named), shutdown_on_exit=False)
        self._endpoint = endpoint
        self._host = urlsplit(endpoint).hostname
        self.spans: Spans = RequestSpans(self._provider.get_tracer(SERVICE, version("remix-serve")))

    @asynccontextmanager
    async def exporting(self) -> AsyncIterator[None]:
        """Sends spans while it is open, and the last ones within `FLUSH_SECONDS`. Raises
        `ConfigError`."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=self._endpoint)
        try:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        except ValueError as error:
            raise ConfigError(f"OTEL_BSP_*: {error}") from error
        logging.getLogger(OTLPSpanExporter.__module__).addFilter(_Seldom())
        log.info("traces go to %s", self._host)
        try:
            yield
        finally:
            if not await _within(FLUSH_SECONDS, self._provider.shutdown):
                exporter.shutdown()  # type: ignore[no-untyped-call]
                log.warning("the last traces are lost: %s did not take them", self._host)


class _Seldom(logging.Filter):
    """Lets an exporter that cannot send say so now and then, not for each batch and each try."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or record.created < self._next:
            return False
        self._next = record.created + QUIET_SECONDS
        return True


def make_tracing(
    settings: ServerSettings, environment: Mapping[str, str] = os.environ
) -> Tracing | None:
    """None where no endpoint is set, or OpenTelemetry's variables say no. Raises `ConfigError`."""
    found = _endpoint(settings, environment)
    if found is None or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    source, endpoint = found
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter == "none":
        return None
    if exporter != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER: found {exporter!r}, expected otlp or none")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(name, "").strip():
            if protocol != "http/protobuf":
                raise ConfigError(f"{name}: found {protocol!r}, expected http/protobuf")
            break
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.hostname:
        # Not what was found: a key may be in it.
        raise ConfigError(f"{source}: expected a URL as http://localhost:4318")
    for name in ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"):
        for header in filter(str.strip, environment.get(name, "").split(",")):
            if not _HEADER.fullmatch(header):
                raise ConfigError(f"{name}: expected name=value, several separated by commas")
    return Tracing(endpoint)


def _endpoint(settings: ServerSettings, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable that says so, and the whole URL."""
    if settings.otlp_endpoint is not None:
        return _OWN, _with_path(settings.otlp_endpoint)
    if whole := environment.get(_TRACES, "").strip():
        return _TRACES, whole
    if base := environment.get(_ALL, "").strip():
        return _ALL, _with_path(base)
    return None


def _with_path(base: str) -> str:
    return f"{base.rstrip('/')}/v1/traces"


async def _within(seconds: float, work: Callable[[], object]) -> bool:
    """Whether the work has ended by then. Its thread is none that the process waits for."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def run() -> None:
        try:
            work()
        finally:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="remix-traces-end", daemon=True).start()
    with suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
    return ended.is_set()
