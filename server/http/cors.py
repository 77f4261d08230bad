"""Lets the scripts of web pages on other origins ask, where the operator allows their origins."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, PlainTextResponse, Response

from server.http.errors import ApiError
from server.http.request import REQUEST_ID_HEADER

_READABLE = (
    REQUEST_ID_HEADER,
    "retry-after",
    *(
        f"x-ratelimit-{what}-{of}"
        for what in ("limit", "remaining", "reset")
        for of in ("requests", "tokens")
    ),
)
"""Headers of answers that scripts may read beside the few that they always may."""


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == HTTPStatus.OK:
            return response
        assert isinstance(response, PlainTextResponse)
        message = f"{bytes(response.body).decode()}; --cors-origin names the origins that may ask"
        body = ApiError(HTTPStatus.BAD_REQUEST, message).body.model_dump()
        return JSONResponse(body, HTTPStatus.BAD_REQUEST, {"Vary": response.headers["vary"]})


def allow_origins(app: FastAPI, origins: Collection[str]) -> None:
    """Preflights of these origins pass without a key; errors can be read by their scripts too.

    Without credentials, which are cookies here: keys are sent by the scripts themselves.
    """
    if origins:
        app.add_middleware(
            _Cors,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=_READABLE,
        )
