"""Turns every failure into OpenAI's error shape, with the right status and nothing of our
insides."""

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

from remix_runtime.errors import (
    AdapterNotLoadedError,
    AdapterUnavailableError,
    CapacityError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
    RemixError,
)
from server.http.request import label_error
from server.live.quotas import RateLimitedError
from server.live.sets import UnknownModelError
from server.live.swap import BadSetError
from server.store import (
    ImportStoppedError,
    RejectedAdapterError,
    SourceError,
    SourceUnavailableError,
    StoreError,
    StoreFullError,
    UnknownDigestError,
)
from server.tenancy.errors import (
    ConflictError,
    DatabaseUnavailableError,
    InvalidValueError,
    NotFoundError,
    StaleRevisionError,
    TenancyError,
    UnknownAdapterError,
)

log = logging.getLogger(__name__)

_MAX_MESSAGE = 1000


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
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message[:_MAX_MESSAGE], headers=headers)
        self.type = type
        self.param = param
        self.code = code
        self.reasons = reasons
        """What is wrong with the adapters of a refused set, by their names."""

    @property
    def body(self) -> ErrorBody | BadSetBody:
        detail = ErrorDetail(message=self.detail, type=self.type, param=self.param, code=self.code)
        if self.reasons is None:
            return ErrorBody(error=detail)
        reasons = {name: reason[:_MAX_MESSAGE] for name, reason in self.reasons.items()}
        return BadSetBody(error=BadSetDetail(**detail.model_dump(), reasons=reasons))

    def response(self) -> JSONResponse:
        return JSONResponse(
            self.body.model_dump(), status_code=self.status_code, headers=self.headers
        )


def unavailable(message: str, *, code: str, retry_after: float) -> ApiError:
    """A 503 with Retry-After."""
    status, headers = HTTPStatus.SERVICE_UNAVAILABLE, _retry_after(retry_after)
    return ApiError(status, message, type="server_error", code=code, headers=headers)


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _internal_error(error: Exception) -> ApiError:
    """A 500; the cause goes to the log, never to the client."""
    log.error("request failed", exc_info=error)
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "The server had an error while processing the request.",
        type="server_error",
        code="internal_error",
    )


def as_api_error(error: Exception) -> ApiError:
    """The wire form of any exception. Unknown ones are logged and become a plain 500."""
    match error:
        case ApiError():
            return error
        case UnknownModelError():
            return ApiError(HTTPStatus.NOT_FOUND, str(error), param="model", code="model_not_found")
        case AdapterNotLoadedError():
            log.error("a live set names an adapter that the engine does not have: %s", error)
            message = "The model does not exist or you do not have access to it."
            return ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
        case AdapterUnavailableError():
            log.error("an adapter cannot be served: %s", error)
            message = "The model is not available on this server at the moment."
            return unavailable(message, code="model_unavailable", retry_after=10)
        case RateLimitedError():
            return ApiError(
                HTTPStatus.TOO_MANY_REQUESTS,
                str(error),
                type="rate_limit_error",
                code="rate_limit_exceeded",
                headers={**error.headers, **_retry_after(error.retry_after)},
            )
        case DatabaseUnavailableError():
            log.error("the directory cannot be asked: %s", error)
            message = "The server cannot check this at the moment."
            return unavailable(message, code="directory_unavailable", retry_after=error.retry_after)
        case InvalidRequestError():
            status = HTTPStatus.BAD_REQUEST
            return ApiError(status, str(error), param=error.param, code=error.code)
        case CapacityError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error), code="over_capacity")
        case EngineBusyError():
            return unavailable(str(error), code="busy", retry_after=error.retry_after)
        case EngineDeadError():
            log.error("a request met a dead engine: %s", error)
            message = "The model is not available on this server at the moment."
            return unavailable(message, code="engine_dead", retry_after=10)
        case BadSetError():
            return _unprocessable(error, "bad_set", reasons=error.reasons)
        case TenancyError():
            return _from_tenancy(error)
        case StoreError():
            return _from_store(error)
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return _from_http(error)
    return _internal_error(error)


def _from_tenancy(error: TenancyError) -> ApiError:
    """Has the statuses that `server/tenancy/errors.py` states."""
    match error:
        case NotFoundError():
            return ApiError(HTTPStatus.NOT_FOUND, str(error), code="not_found")
        case ConflictError():
            return ApiError(HTTPStatus.CONFLICT, str(error), code="conflict")
        case StaleRevisionError():
            status = HTTPStatus.PRECONDITION_FAILED
            headers = {"ETag": f'"{error.found}"'}
            return ApiError(status, str(error), code="stale_revision", headers=headers)
        case UnknownAdapterError():
            reasons = {
                name: f"{digest} is not registered" for name, digest in error.adapters.items()
            }
            return _unprocessable(error, "unknown_adapter", reasons=reasons)
        case InvalidValueError():
            return ApiError(HTTPStatus.BAD_REQUEST, str(error), param=error.field)
    return _internal_error(error)


def _from_store(error: StoreError) -> ApiError:
    match error:
        case UnknownDigestError():
            return ApiError(HTTPStatus.NOT_FOUND, str(error), code="not_found")
        case SourceError():
            return _unprocessable(error, "source_refused", param="source")
        case RejectedAdapterError():
            return _unprocessable(error, "adapter_rejected", param="source")
        case ImportStoppedError():
            return unavailable(str(error), code="import_stopped", retry_after=5)
        case SourceUnavailableError():
            status, kind = HTTPStatus.BAD_GATEWAY, "server_error"
            return ApiError(status, str(error), type=kind, code="source_unavailable")
        case StoreFullError():
            status, kind = HTTPStatus.INSUFFICIENT_STORAGE, "server_error"
            return ApiError(status, str(error), type=kind, code="store_full")
    return _internal_error(error)


def _unprocessable(
    error: RemixError,
    code: str,
    *,
    param: str | None = None,
    reasons: Mapping[str, str] | None = None,
) -> ApiError:
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return ApiError(status, str(error), param=param, code=code, reasons=reasons)


def _from_validation(error: RequestValidationError) -> ApiError:
    first = error.errors()[0]
    context = first.get("ctx", {})
    path = [part for part in first["loc"][1:] if part != "body"]
    if "reason" in context:
        param, message = context.get("param") or _join(path), context["reason"]
    else:
        param, message = _join(path), first["msg"]
    if not path and not param:
        message = f"the body is not as expected: {message}"
    where = f"{param}: " if param else ""
    return ApiError(HTTPStatus.BAD_REQUEST, where + message, param=param)


def _join(path: list[str | int]) -> str | None:
    """The name of a field: `messages[0].content` for ["messages", 0, "content"]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or None


def _from_http(error: HTTPException) -> ApiError:
    """FastAPI's own errors: 404 of an unknown path, 405, a body that cannot be read."""
    status = HTTPStatus(error.status_code)
    return ApiError(status, status.description or status.phrase, headers=error.headers)


async def handle_error(request: Request, error: Exception) -> JSONResponse:
    """The one exception handler of the app."""
    api_error = as_api_error(error)
    label_error(request.scope, api_error.code or api_error.type)
    return api_error.response()


def install(app: FastAPI) -> None:
    """Makes `handle_error` the answer to every exception. Starlette re-raises what only the
    handler of `Exception` takes, so errors that are expected are named."""
    for kind in (HTTPException, RequestValidationError, RemixError, Exception):
        app.add_exception_handler(kind, handle_error)
