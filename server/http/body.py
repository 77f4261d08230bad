"""Reads request bodies: their type, their size, and JSON by the letter."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, ParamSpec, TypeVar

from fastapi import Request, Response
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from remix_runtime.errors import EngineBusyError
from remix_runtime.fairness.worker import FairWorker
from server.http.errors import ApiError, as_api_error, unavailable
from server.http.request import CLIENT_GONE, label_error, state_of
from server.http.weight import require_light, require_small_objects

P = ParamSpec("P")
T = TypeVar("T")

SMALL_BODY_BYTES = 16 << 10
"""A body up to this size is read and checked at once. A larger one has a thread for it, and bounds
on its parts."""

_GZIP = b"\x1f\x8b"
_NO_BODY = {"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}


class ClientGoneError(BaseException):
    """The client left while it sent its body. FastAPI makes a 400 of every `Exception`."""


class StrictRequest(Request):
    """Refuses a wrong content type, a body over the limit, and what is not strict JSON."""

    validate: Callable[..., tuple[Any, Any]] | None = None
    """Makes of JSON what the route takes. A large body goes through it here, and FastAPI finds
    nothing left to do."""
    _room = 0
    """Bytes that the body holds of what there is for all."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            self._check_content_type()
            limit: int = self.app.state.services.settings.max_body_bytes
            # The announced length is refused before a byte of it is read.
            announced = self.headers.get("content-length", "")
            if announced.isdecimal() and int(announced[:20]) > limit:
                raise _too_large(limit)
            received = bytearray()
            try:
                async for chunk in self.stream():
                    self._make_room(len(chunk))
                    received += chunk
                    if len(received) > limit:
                        raise _too_large(limit)
            except ClientDisconnect:
                raise ClientGoneError from None
            self._body = bytes(received)
            state_of(self.scope).body_bytes = len(received)
        return self._body

    def _make_room(self, num_bytes: int) -> None:
        """Until the last byte of the answer."""
        state, bodies = state_of(self.scope), self.app.state.services.bodies
        if not bodies.take(state.tenant, num_bytes):
            message = "too many bytes of requests wait for their answers"
            raise unavailable(message, code="busy", retry_after=1)
        if not self._room:
            state.holds.callback(lambda: bodies.give_back(state.tenant, self._room))
        self._room += num_bytes

    async def json(self) -> Any:
        text = await self.body()
        if text.startswith(_GZIP):
            raise _compressed("found a gzip file")
        if len(text) <= SMALL_BODY_BYTES:
            return self._parsed(text)
        try:
            return await run_in_worker(self, self._read_large, text)
        except EngineBusyError as error:
            raise as_api_error(error) from error

    def _read_large(self, text: bytes) -> Any:
        require_light(text)
        body = self._parsed(text)
        require_small_objects(body)
        if self.validate is None:
            return body
        value, errors = self.validate(body, {}, loc=("body",))
        if errors:
            raise as_api_error(RequestValidationError(errors[:1]))
        return value

    def _parsed(self, text: bytes) -> Any:
        try:
            # Rejects NaN, Infinity, lone surrogates, invalid UTF-8 and endless nesting.
            body = from_json(text, allow_inf_nan=False)
        except ValueError as error:
            message = f"the body is not valid JSON: {error}"
            raise ApiError(HTTPStatus.BAD_REQUEST, message, code="invalid_json") from None
        if isinstance(body, dict) and isinstance(model := body.get("model"), str):
            state_of(self.scope).asked = model
        return body

    def _check_content_type(self) -> None:
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding != "identity":
            raise _compressed(f"Content-Encoding: found {encoding[:100]!r}")
        content_type = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        # Browsers send nothing else across sites without asking first.
        if content_type != "application/json":
            raise ApiError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"Content-Type: found {content_type[:100]!r}, expected 'application/json'",
                code="unsupported_media_type",
            )


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest` and fails with nothing but `ApiError`."""

    request_class: ClassVar[type[StrictRequest]] = StrictRequest

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = self._own_handler() or super().get_route_handler()

        async def strict_handler(request: Request) -> Response:
            strict = self.request_class(request.scope, request.receive)
            strict.validate = self.body_field.validate if self.body_field else None
            try:
                return await handler(strict)
            except ClientGoneError:
                label_error(request.scope, CLIENT_GONE)
                return _NoResponse()
            except Exception as error:
                raise as_api_error(error) from error

        return strict_handler

    def _own_handler(self) -> Callable[[StrictRequest], Coroutine[Any, Any, Response]] | None:
        """For an endpoint that takes its body and its request, and makes its own response: FastAPI
        would look at each request for what else there may be, which takes a tenth of its time."""
        field, needs, endpoint = self.body_field, self.dependant, self.endpoint
        request_name = needs.request_param_name
        has_more = needs.dependencies or get_flat_params(needs) or self.response_field is not None
        if field is None or request_name is None or has_more:
            return None

        async def own_handler(request: StrictRequest) -> Response:
            if not await request.body():
                raise RequestValidationError([_NO_BODY])
            body, errors = field.validate(await request.json(), {}, loc=("body",))
            if errors:
                raise RequestValidationError(errors)
            response: Response = await endpoint(**{field.name: body, request_name: request})
            return response

        return own_handler


class _NoResponse(Response):
    """No response, since nobody is there to read it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return


async def run_if_large(
    http: Request, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Runs `function`, in a thread if the request's body was large. Raises `EngineBusyError`."""
    if state_of(http.scope).body_bytes <= SMALL_BODY_BYTES:
        return function(*args, **kwargs)
    return await run_in_worker(http, function, *args, **kwargs)


async def run_in_worker(
    http: Request, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Runs `function` in a thread, in its tenant's turn. Raises `EngineBusyError`."""
    worker: FairWorker = http.app.state.services.worker
    return await worker.run(state_of(http.scope).tenant, partial(function, *args, **kwargs))


def _compressed(found: str) -> ApiError:
    return ApiError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        f"{found}, expected a body that is not compressed; send the JSON as it is",
        code="unsupported_media_type",
        headers={"Accept-Encoding": "identity"},
    )


def _too_large(limit: int) -> ApiError:
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the request body is larger than {limit} bytes",
        code="body_too_large",
    )
