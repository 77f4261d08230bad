"""Describes the answers that handlers build themselves, for the OpenAPI document."""

from __future__ import annotations

from types import UnionType
from typing import Any

from pydantic import BaseModel

from server.http.errors import ErrorBody

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request is wrong; `param` names the field."},
    401: {"description": "No valid API key, where the server wants one."},
    404: {"description": "No such model."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is not sent as application/json."},
    429: {"description": "Over the tenant's quota; see Retry-After and x-ratelimit-*."},
    500: {"description": "An error of the server."},
    503: {"description": "Not now: full, stopping, or the model is not at hand; see Retry-After."},
}


def error_responses(error: type[BaseModel] = ErrorBody) -> dict[int | str, dict[str, Any]]:
    """The `responses` of every route that takes a body."""
    return {status: {**described, "model": error} for status, described in _ERRORS.items()}


def generation_responses(
    answer: type[BaseModel] | UnionType, error: type[BaseModel] = ErrorBody
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a generating route. A stream has no schema: it is many documents."""
    whole: dict[str, Any] = {"model": answer, "content": {"text/event-stream": {}}}
    return {200: whole, **error_responses(error)}
