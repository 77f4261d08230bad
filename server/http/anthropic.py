"""Errors in Anthropic's shape, which the paths of its API answer with."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


class AnthropicErrorDetail(BaseModel):
    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """Anthropic's error shape."""

    type: Literal["error"] = "error"
    error: AnthropicErrorDetail
    request_id: str


def is_anthropic(path: str) -> bool:
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def anthropic_error(status: int, message: str, request_id: str) -> AnthropicErrorBody:
    kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    detail = AnthropicErrorDetail(type=kind, message=message)
    return AnthropicErrorBody(error=detail, request_id=request_id)
