"""Requests for what is not there: the error says which path or method was probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException

_PREFIXES = ("/v1", "/admin/v1")
_MAX_SHOWN = 200


def describe(request: Request, error: HTTPException) -> HTTPException:
    """The router's own 404 or 405, with a text that helps; other errors as they are."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return _wrong_method(request, error)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return HTTPException(error.status_code, _nothing_at(request), headers=error.headers)
    return error


def _wrong_method(request: Request, error: HTTPException) -> HTTPException:
    taken = _methods(request.app, request.scope["path"])
    if not taken:
        taken = sorted((error.headers or {}).get("Allow", "").split(", "))
    message = f"{request.method} is not taken at {_shown(request)}, expected {' or '.join(taken)}"
    if "access-control-request-method" in request.headers:
        message += "; scripts of other origins may ask where --cors-origin names theirs"
    allow = [*taken, *(["HEAD"] if "GET" in taken and "HEAD" not in taken else [])]
    return HTTPException(error.status_code, message, headers={"Allow": ", ".join(allow)})


def _nothing_at(request: Request) -> str:
    message = f"There is nothing at {_shown(request)}"
    path = request.scope["path"][:_MAX_SHOWN]
    for meant in _similar(path):
        if _methods(request.app, meant):
            message += f", expected {meant}."
            for prefix in _PREFIXES:
                if meant.startswith(f"{prefix}/"):
                    message += f" A client's base URL ends in {prefix}, once and without a slash."
            return message
    return message + "; the paths are in /openapi.json."


def _similar(path: str) -> Iterator[str]:
    """What a path becomes without the usual mistakes in a client's base URL."""
    single = re.sub(r"/{2,}", "/", path).rstrip("/")
    yield single
    for prefix in _PREFIXES:
        yield f"{prefix}{single}"
        # Whatever came before it: a proxy's own prefix, or the same one again.
        before, separator, rest = single.rpartition(f"{prefix}/")
        if before:
            yield f"{separator}{rest}"


def _methods(app: FastAPI, path: str) -> list[str]:
    """The methods that are documented for a path."""
    found: set[str] = set()
    documented: dict[str, dict[str, Any]] = app.openapi()["paths"]
    for template, operations in documented.items():
        names = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/].*", names), path):
            found.update(method.upper() for method in operations)
    return sorted(found)


def _shown(request: Request) -> str:
    return ascii(request.scope["path"][:_MAX_SHOWN])
