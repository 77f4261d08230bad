"""What one request holds and tells the metrics and the log, and the middleware that ends it."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remix_runtime.contracts import SamplingParams
from server.http.logs import REQUEST_ID, TRACE_ID, RequestEnd, access
from server.live.quotas import Admission
from server.live.sets import UnknownModelError
from server.metrics import OTHER
from server.services import Services

if TYPE_CHECKING:
    from opentelemetry.trace import Span

ENDPOINTS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/invocations": "invocations",
}
DISCONNECTED = "disconnected"
CLIENT_GONE = "client_disconnected"
"""The error of a request whose client left before the end of its answer."""
PROBES = frozenset({"/health", "/ping", "/ready"})
REQUEST_ID_HEADER = "x-request-id"
_QUIET = PROBES | {"/metrics"}
"""What is asked every few seconds all day long."""
_USABLE_ID = re.compile(r"[!-~]{1,128}")
_STATE = "remix.request"


@dataclass(slots=True, kw_only=True)
class Generation:
    """What the engine was asked for a request, and when. Times are seconds from its arrival; None
    where it did not come to that."""

    params: SamplingParams
    """Of the first sequence."""
    choices: int
    """Of each prompt."""
    stream: bool
    is_chat: bool
    load_seconds: tuple[float, float] | None = None
    """From when to when it waited for its adapter."""
    handed_seconds: float | None = None
    """When the engine got it."""
    ended_seconds: float | None = None
    """When the last token had come, or the failure."""
    cached_tokens: int | None = None
    """Of the prompts, in the prefix cache; None where there is none."""
    finish_reasons: tuple[str, ...] = ()
    """Of the sequences that came to their end."""


@dataclass(slots=True)
class RequestState:
    """Filled in while a request is handled; the metrics and the log read it at the end."""

    request_id: str = ""
    """The client's, or a fresh one."""
    status: str | None = None
    """None until the answer begins."""
    tenant: str = ""
    """The tenant that the key belongs to, or `SINGLE_USER`."""
    admission: Admission | None = None
    """Its place in the tenant's quota."""
    body_bytes: int = 0
    asked: str | None = None
    """The model that the body names, whether there is one or not."""
    name: str | None = None
    """The model's name, once the tenant's set has resolved it."""
    digest: str | None = None
    """Of the model's adapter."""
    is_late: bool = False
    """It began when the server let no more in."""
    error: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    queue_seconds: float | None = None
    """Of the first of its sequences that left the engine's queue."""
    first_token_seconds: float | None = None
    """From the request's arrival."""
    generation: Generation | None = None
    """None until the request is valid."""
    end_stream: Callable[[Exception], Awaitable[None]] | None = None
    """Tells a failure as the stream's last event, where an attempt at an answer has sent comments
    and left the answer to another one."""
    began: float = field(default_factory=monotonic)
    span: Span | None = None
    """None where there are no traces."""
    holds: ExitStack = field(default_factory=ExitStack)
    """Given back after the last byte of the answer, whatever the end is."""

    @property
    def seconds(self) -> float:
        """Since the request's arrival."""
        return monotonic() - self.began


def open_state(scope: MutableMapping[str, Any]) -> RequestState:
    state = RequestState()
    scope[_STATE] = state
    return state


def state_of(scope: MutableMapping[str, Any]) -> RequestState:
    state: RequestState = scope[_STATE]
    return state


def label_error(scope: MutableMapping[str, Any], error: str) -> None:
    state_of(scope).error = error


WITHOUT_TELEMETRY: Any = {
    **{"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    "auto_configure": False,
}
"""For FastAPI, whose own tells the texts of wrong requests to whatever OpenTelemetry provider the
process has."""


class Spans(Protocol):
    """The maker of requests' spans."""

    def open(self, scope: Scope) -> Span: ...

    def end(
        self,
        span: Span,
        scope: Scope,
        state: RequestState,
        *,
        endpoint: str | None,
        name: str | None,
        seconds: float,
    ) -> None: ...


class RequestMiddleware:
    """Gives every request its state and its id, gives back what it held, counts it if it generates,
    writes its line into the log and ends its span, whatever its end is."""

    def __init__(self, app: ASGIApp, *, access_log: bool, spans: Spans | None = None) -> None:
        """`spans`: None where there are no traces."""
        self._app = app
        self._access_log = access_log
        self._spans = spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = open_state(scope)
        state.request_id = _request_id(scope)
        id_header = (REQUEST_ID_HEADER.encode(), state.request_id.encode())

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = str(HTTPStatus(message["status"]).value)
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        span = state.span = self._open_span(scope)
        token, trace_token = REQUEST_ID.set(state.request_id), TRACE_ID.set(_trace_id(span))
        try:
            with state.holds:
                await self._app(scope, receive, watched_send)
        except Exception:
            state.error = state.error or "internal_error"
            raise
        finally:
            REQUEST_ID.reset(token)
            TRACE_ID.reset(trace_token)
            self._tell(state, scope)

    def _open_span(self, scope: Scope) -> Span | None:
        if self._spans is None or scope["path"] in _QUIET:
            return None
        return self._spans.open(scope)

    def _tell(self, state: RequestState, scope: Scope) -> None:
        status, seconds = state.status or DISCONNECTED, state.seconds
        name = state.name
        endpoint = ENDPOINTS.get(scope["path"]) if scope["method"] == "POST" else None
        if endpoint is not None:
            services: Services = scope["app"].state.services
            name = _label(services, state)
            services.metrics.count_request(
                tenant=state.tenant,
                name=name,
                endpoint=endpoint,
                status=status,
                error=state.error,
                seconds=seconds,
            )
        if state.span is not None:
            assert self._spans is not None
            self._spans.end(state.span, scope, state, endpoint=endpoint, name=name, seconds=seconds)
        if self._access_log:
            level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
            if access.isEnabledFor(level):
                access.log(level, _end(state, scope, name, seconds))


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).getlist(REQUEST_ID_HEADER)
    if len(given) == 1 and _USABLE_ID.fullmatch(given[0]):
        return given[0]
    return secrets.token_hex(16)


def traceparent(span: Span) -> str:
    """The header that makes another span a child of this one."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def _trace_id(span: Span | None) -> str | None:
    return None if span is None else f"{span.get_span_context().trace_id:032x}"


def path_of(scope: Scope) -> bytes:
    """As it came, without the query: a key that somebody put there would stay in the log."""
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path.partition(b"?")[0]


def _end(state: RequestState, scope: Scope, name: str | None, seconds: float) -> RequestEnd:
    fields = {
        "tenant": state.tenant or None,
        "adapter": name,
        "digest": state.digest,
        "prompt_tokens": state.prompt_tokens,
        "generated_tokens": state.generated_tokens,
        "queue": state.queue_seconds,
        "first_token": state.first_token_seconds,
        "duration": seconds,
        "error": state.error,
    }
    return RequestEnd(
        scope["method"],
        path_of(scope),
        None if state.status is None else int(state.status),
        fields,
        state.request_id,
        _trace_id(state.span),
    )


def _label(services: Services, state: RequestState) -> str:
    """The name that a request is counted under: its model's, even if it was refused before anybody
    asked for the model, but only if the tenant may use it. So the values are bounded."""
    if state.name is not None:
        return state.name
    if state.asked is None:
        return OTHER
    may_use_base = services.access.quota(state.tenant).may_use_base
    try:
        target = services.sets.resolve(state.tenant, state.asked, may_use_base=may_use_base)
    except UnknownModelError:
        return OTHER
    return target.name
