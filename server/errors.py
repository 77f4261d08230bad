"""Every failure as OpenAI's error shape, with the right status and nothing of our insides."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
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
from server.registry import UnknownModelError
from server.schemas.responses import ErrorBody, ErrorDetail
from server.state import label_error

log = logging.getLogger(__name__)

_MAX_MESSAGE = 1000


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
    ) -> None:
        super().__init__(status, message[:_MAX_MESSAGE], headers=headers)
        self.type = type
        self.param = param
        self.code = code

    @property
    def body(self) -> ErrorBody:
        detail = ErrorDetail(message=self.detail, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail)

    def response(self) -> JSONResponse:
        return JSONResponse(
            self.body.model_dump(), status_code=self.status_code, headers=self.headers
        )


def unavailable(message: str, *, code: str, retry_after: float) -> ApiError:
    """503 with Retry-After."""
    headers = {"Retry-After": str(max(1, math.ceil(retry_after)))}
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return ApiError(status, message, type="server_error", code=code, headers=headers)


def internal_error() -> ApiError:
    """500; the cause goes to the log, never to the client."""
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
            log.error("the registry names an adapter that the engine does not have: %s", error)
            message = "The model does not exist or you do not have access to it."
            return ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")
        case AdapterUnavailableError():
            log.error("an adapter's folder cannot be read any more: %s", error)
            message = "The model is not available on this server at the moment."
            return unavailable(message, code="model_unavailable", retry_after=10)
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
        case RequestValidationError():
            return _from_validation(error)
        case HTTPException():
            return _from_http(error)
    log.error("request failed", exc_info=error)
    return internal_error()


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
    """`messages[0].content` for ["messages", 0, "content"]."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or None


def _from_http(error: HTTPException) -> ApiError:
    """FastAPI's own: 404 of an unknown path, 405, a body that cannot be read."""
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
