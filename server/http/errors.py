"""Turns every failure into the error shape of an API, OpenAI's unless it is another's path, with
the right status and nothing of our insides."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import Scope

from remix_runtime.errors import (
    AdapterNotLoadedError,
    AdapterUnavailableError,
    CapacityError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
    RemixError,
    ReplicaLostError,
)
from server.http.anthropic import anthropic_error, is_anthropic
from server.http.paths import describe
from server.http.request import label_error, state_of
from server.live.quotas import RateLimitedError
from server.live.sets import UnknownModelError
from server.live.swap import BadSetError
from server.store import (
    ImportStoppedError,
    RejectedAdapterError,
    SourceError,
    SourceUnavailableError,
    StoreFullError,
    UnknownDigestError,
)
from server.tenancy.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidValueError,
    NotFoundError,
    StaleRevisionError,
    UnknownAdapterError,
)

log = logging.getLogger(__name__)

_MAX_MESSAGE = 1000
_NOT_NOW = "The model is not available on this server at the moment."


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """OpenAI's error shape."""

    error: ErrorDetail


class BadSetDetail(ErrorDetail):
    reasons: dict[str, str]
    """What is wrong with the adapters of the wanted set, by their names."""


class BadSetBody(BaseModel):
    """OpenAI's error shape, and why each adapter of a set was refused."""

    error: BadSetDetail


class ApiError(HTTPException):
    """An error that is ready for the wire."""

    def __init__(
        self,
        status: HTTPStatus,
        message: str,
        *,
        type: str | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reasons: Mapping[str, str] | None = None,
        label: str | None = None,
    ) -> None:
        super().__init__(status, message[:_MAX_MESSAGE], headers=headers)
        self.type = type or ("server_error" if status >= 500 else "invalid_request_error")
        self.param = param
        self.code = code
        self.label = label or code or self.type
        """What metrics count it under, and the log names it by."""
        self.reasons = reasons
        """What is wrong with the adapters of a refused set, by their names."""

    @property
    def body(self) -> ErrorBody | BadSetBody:
        detail = ErrorDetail(message=self.detail, type=self.type, param=self.param, code=self.code)
        if self.reasons is None:
            return ErrorBody(error=detail)
        reasons = {name: reason[:_MAX_MESSAGE] for name, reason in self.reasons.items()}
        return BadSetBody(error=BadSetDetail(**detail.model_dump(), reasons=reasons))

    def response(self, scope: Scope) -> JSONResponse:
        """In the shape of the API that the request's path belongs to."""
        body: BaseModel = self.body
        if is_anthropic(scope["path"]):
            request_id = state_of(scope).request_id
            body = anthropic_error(self.status_code, self.detail, request_id)
        return JSONResponse(body.model_dump(), status_code=self.status_code, headers=self.headers)


def unavailable(message: str, *, code: str, retry_after: float) -> ApiError:
    """A 503 with Retry-After."""
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, _retry_after(retry_after)
    return ApiError(status, message, code=code, headers=headers)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _internal_error(error: Exception) -> ApiError:
    """A 500; the cause goes to the log, never to the client."""
    log.error("request failed", exc_info=error)
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The server had an error while processing the request.",
        code="internal_error",
    )


_TOLD: Mapping[type[Exception], tuple[HTTPStatus, str, str | None]] = {
    UnknownModelError: (HTTPStatus.NOT_FOUND, "model_not_found", "model"),
    CapacityError: (HTTPStatus.BAD_REQUEST, "over_capacity", None),
    NotFoundError: (HTTPStatus.NOT_FOUND, "not_found", None),
    ConflictError: (HTTPStatus.CONFLICT, "conflict", None),
    UnknownDigestError: (HTTPStatus.NOT_FOUND, "not_found", None),
    SourceError: (HTTPStatus.UNPROCESSABLE_ENTITY, "source_refused", "source"),
    RejectedAdapterError: (HTTPStatus.UNPROCESSABLE_ENTITY, "adapter_rejected", "source"),
    SourceUnavailableError: (HTTPStatus.BAD_GATEWAY, "source_unavailable", None),
    StoreFullError: (HTTPStatus.INSUFFICIENT_STORAGE, "store_full", None),
}
"""Failures, those of their subclasses too, whose text is all that the client needs: their status,
code and param."""


def as_api_error(error: Exception) -> ApiError:
    """The wire form of any exception. Unknown ones are logged and become a plain 500."""
    match error:
        case ApiError():
            return error
        case AdapterNotLoadedError():
            log.error("a live set names an adapter that the engine does not have: %s", error)
            message = "The model does not exist or you do not have access to it."
            return ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
        case AdapterUnavailableError():
            log.error("an adapter cannot be served: %s", error)
            message = _NOT_NOW if error.digest is None else f"{_NOT_NOW} (adapter {error.digest})"
            return unavailable(message, code="model_unavailable", retry_after=error.retry_after)
        case EngineDeadError():
            log.error("a request met a dead engine: %s", error)
            return unavailable(_NOT_NOW, code="engine_dead", retry_after=10)
        case ReplicaLostError():
            log.error("a request lost its replica: %s", error)
            message = "What computed this request has ended. Send it again."
            return unavailable(message, code="replica_lost", retry_after=1)
        case DatabaseUnavailableError():
            log.error("the directory cannot be asked: %s", error)
            message = "The server cannot check this at the moment."
            return unavailable(message, code="directory_unavailable", retry_after=error.retry_after)
        case EngineBusyError():
            return unavailable(str(error), code="busy", retry_after=error.retry_after)
        case ImportStoppedError():
            return unavailable(str(error), code="import_stopped", retry_after=5)
        case RateLimitedError():
            return ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                str(error),
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={**error.headers, **_retry_after(error.retry_after)},
            )
        case InvalidRequestError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error), param=error.param, code=error.code)
        case InvalidValueError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error), param=error.field)
        case StaleRevisionError():
            status, headers = HTTPStatus.PRECONDITION_FAILED, {"ETag": f'"{error.found}"'}
            return ApiError(status, str(error), code="stale_revision", headers=headers)
        case BadSetError():
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            return ApiError(status, str(error), code="bad_set", reasons=error.reasons)
        case UnknownAdapterError():
            reasons = {
                name: f"{digest} is not registered" for name, digest in error.adapters.items()
            }
            status = HTTPStatus.UNPROCESSABLE_ENTITY
            return ApiError(status, str(error), code="unknown_adapter", reasons=reasons)
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return _from_http(error)
    for kind in type(error).__mro__:
        if kind in _TOLD:
            status, code, param = _TOLD[kind]
            return ApiError(status, str(error), param=param, code=code)
    return _internal_error(error)


def _from_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    context = first.get("ctx", {})
    path = [part for part in first["loc"][1:] if part != "body"]
    if "reason" in context:
        param, message = _join([*path, *filter(None, [context.get("param")])]), context["reason"]
        code = "invalid_value"
    else:
        # In the text too: that is all that some clients show.
        param, message, code = _join(path), f"{first['msg']} ({first['type']})", first["type"]
    if not param:
        message = f"the body is not as expected: {message}"
    where = f"{param}: " if param else ""
    return ApiError(
        HTTPStatus.BAD_REQUEST,
        where + message,
        param=param,
        code=code,
        label="invalid_request_error",  # there are a hundred such codes
    )


def _join(path: list[str | int]) -> str | None:
    """The name of a field: `messages[0].content` for ["messages", 0, "content"]. Tags of unions,
    which are written <so>, are no part of it."""
    named = [part for part in path if isinstance(part, int) or not part.startswith("<")]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named)
    return text.lstrip(".") or None


def _from_http(error: HTTPException) -> ApiError:
    """FastAPI's own errors: 404 of an unknown path, 405, a body that cannot be read."""
    return ApiError(HTTPStatus(error.status_code), str(error.detail), headers=error.headers)


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """The one exception handler of the app."""
    if isinstance(error, HTTPException) and not isinstance(error, ApiError):
        error = describe(request, error)
    api_error = as_api_error(error)
    label_error(request.scope, api_error.label)
    return api_error.response(request.scope)


def install(app: FastAPI) -> None:
    """Makes `handle_error` the answer to every exception. Starlette re-raises what only the
    handler of `Exception` takes, so errors that are expected are named."""
    for kind in (HTTPException, RequestValidationError, RemixError, Exception):
        app.add_exception_handler(kind, handle_error)
