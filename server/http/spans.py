"""The span of a request, by OpenTelemetry's conventions for HTTP servers and generative AI.

Only imported where there are traces. A span has no texts and keys in it, and no values of headers
but the request's id and the caller's trace. The conventions:
https://github.com/open-telemetry/semantic-conventions-genai
"""

from __future__ import annotations

from collections.abc import Iterator
from time import time_ns

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.datastructures import Headers
from starlette.types import Scope

from server.http.request import CLIENT_GONE, Generation, RequestState, path_of
from server.metrics import OTHER

PROVIDER = "remix-serve"

_METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
)
_MAX_PATH = 200
_MAX_PARENT = 128
"""Characters of a `traceparent`; version 00 has 55."""
_SHORTEST_LOAD = 0.001
"""Seconds; who waited less had its adapter at hand."""


class RequestSpans:
    """Makes the spans of requests."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._propagator = TraceContextTextMapPropagator()

    def open(self, scope: Scope) -> Span:
        """A span that begins now, in the caller's trace if it named one."""
        method = _method(scope)
        return self._tracer.start_span(
            method,
            self._parent(scope),
            SpanKind.SERVER,
            {"http.request.method": method, "url.scheme": scope.get("scheme", "http")},
        )

    def end(
        self,
        span: Span,
        scope: Scope,
        state: RequestState,
        *,
        endpoint: str | None,
        name: str | None,
        seconds: float,
    ) -> None:
        """Ends a span with all that is known of its request, and the phases of its generation.

        `endpoint`: None where nothing is generated. `name`: of the adapter or the base, or
        `OTHER`. `seconds`: how long the request took.
        """
        end = time_ns()
        if span.is_recording():
            begin = end - round(seconds * 1e9)
            attributes = _of_http(scope, state)
            title = f"{_method(scope)} {attributes.get('http.route', '')}".rstrip()
            if endpoint is not None:
                attributes |= _of_model(endpoint, state, name)
                title = str(attributes["gen_ai.operation.name"])
                if name not in (None, OTHER):
                    title = f"{title} {name}"
            span.update_name(title)
            span.set_attributes(attributes)
            if _is_failure(state):
                span.set_status(StatusCode.ERROR)
            if state.generation is not None:
                context = set_span_in_context(span, Context())
                for phase, since, until in _phases(state, state.generation):
                    child = self._tracer.start_span(
                        phase, context, start_time=begin + round(since * 1e9)
                    )
                    child.end(begin + round(until * 1e9))
        span.end(end)

    def _parent(self, scope: Scope) -> Context:
        """The caller's span; none where what it sent is not one."""
        found = Headers(scope=scope).getlist("traceparent")
        if len(found) != 1 or len(found[0]) > _MAX_PARENT:
            return Context()
        # Not `tracestate`: it is free text, and nothing is called from here that it is for.
        return self._propagator.extract({"traceparent": found[0]}, Context())


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "_OTHER"


def _of_http(scope: Scope, state: RequestState) -> dict[str, AttributeValue]:
    found: dict[str, AttributeValue | None] = {
        "url.path": path_of(scope).decode("latin-1")[:_MAX_PATH],
        "http.route": getattr(scope.get("route"), "path", None),
        "http.response.status_code": None if state.status is None else int(state.status),
        "error.type": _error_type(state),
        "remix.request_id": state.request_id,
        "remix.tenant": state.tenant or None,
        "remix.adapter": state.name,
        "remix.digest": state.digest,
    }
    return _known(found)


def _of_model(endpoint: str, state: RequestState, name: str | None) -> dict[str, AttributeValue]:
    generation = state.generation
    is_chat = endpoint != "completions" if generation is None else generation.is_chat
    found: dict[str, AttributeValue | None] = {
        "gen_ai.operation.name": "chat" if is_chat else "text_completion",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": None if name == OTHER else name,
        "remix.adapter": name,
    }
    if generation is not None:
        params, choices = generation.params, generation.choices
        found |= {
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.top_k": params.top_k or None,
            "gen_ai.request.frequency_penalty": params.frequency_penalty or None,
            "gen_ai.request.presence_penalty": params.presence_penalty or None,
            "gen_ai.request.seed": params.seed,
            "gen_ai.request.choice.count": None if choices == 1 else choices,
            "gen_ai.request.stream": generation.stream or None,
            "gen_ai.response.finish_reasons": generation.finish_reasons or None,
            "gen_ai.usage.input_tokens": state.prompt_tokens,
            "gen_ai.usage.output_tokens": state.generated_tokens,
            "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
            "remix.queue_seconds": state.queue_seconds,
        }
        if state.first_token_seconds is not None:
            found["gen_ai.response.model"] = name
            if generation.stream:
                found["gen_ai.response.time_to_first_chunk"] = state.first_token_seconds
    return _known(found)


def _known(found: dict[str, AttributeValue | None]) -> dict[str, AttributeValue]:
    return {name: value for name, value in found.items() if value is not None}


def _error_type(state: RequestState) -> str | None:
    if state.error is not None:
        return state.error
    if state.status is None:
        return CLIENT_GONE
    return state.status if int(state.status) >= 400 else None


def _is_failure(state: RequestState) -> bool:
    """Whether it is the server's: not what a client did wrong, nor that it left."""
    if state.status is None or state.error == CLIENT_GONE:
        return False
    status = int(state.status)
    return status >= 500 or (status < 400 and state.error is not None)


def _phases(state: RequestState, generation: Generation) -> Iterator[tuple[str, float, float]]:
    """What a generation went through, as far as it came: name, begin and end, in seconds from the
    request's arrival. Of several sequences it is the first that gets so far."""
    if generation.load_seconds is not None:
        since, until = generation.load_seconds
        if until - since >= _SHORTEST_LOAD:
            yield "load adapter", since, until
    handed, ended = generation.handed_seconds, generation.ended_seconds
    if handed is None or ended is None:
        return
    if state.queue_seconds is None:
        yield "queue", handed, ended
        return
    entered = min(handed + state.queue_seconds, ended)
    yield "queue", handed, entered
    first = state.first_token_seconds
    if first is None:
        yield "prefill", entered, ended
        return
    yield "prefill", entered, max(entered, first)
    yield "decode", max(entered, first), ended
