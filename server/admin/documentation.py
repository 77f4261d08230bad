"""What the OpenAPI document says beside the handlers' types: errors, ETags."""

from __future__ import annotations

from typing import Any

from server.http.errors import BadSetBody, ErrorBody

Responses = dict[int | str, dict[str, Any]]

_ETAG = {"ETag": {"description": 'The revision, as `"7"`.', "schema": {"type": "string"}}}
_RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_CHALLENGE = {"WWW-Authenticate": {"description": "`Bearer`", "schema": {"type": "string"}}}

_ERRORS: dict[int, dict[str, Any]] = {
    400: {"description": "Malformed; `param` names the field."},
    401: {"description": "Not the admin key.", "headers": _CHALLENGE},
    404: {"description": "What the path or the body names does not exist."},
    409: {"description": "The present state forbids it."},
    411: {"description": "The body's size is not announced."},
    412: {
        "description": "The set has another revision than If-Match states; see ETag.",
        "headers": _ETAG,
    },
    413: {"description": "The body is larger than REMIX_MAX_BODY_BYTES."},
    415: {"description": "The body is not sent as what the route takes, or compressed."},
    429: {"description": "Over the tenant's quota.", "headers": _RETRY},
    500: {"description": "An error of the server; the cause is in its log."},
    502: {"description": "The adapter's source failed; importing again continues."},
    503: {"description": "The database or the engine does not answer now.", "headers": _RETRY},
    507: {"description": "There is no room on the store's disk."},
}
_ALWAYS = (401, 500, 503)
_WITH_BODY = (400, 413, 415)


def failures(*statuses: int, body: bool = False, unprocessable: str | None = None) -> Responses:
    """The `responses` of a route: these statuses, those that every route may answer, those of a
    route that takes a body (`body`), and 422 where it is sent (`unprocessable` says when)."""
    sent = {*_ALWAYS, *statuses, *(_WITH_BODY if body else ())}
    found: Responses = {status: {**_ERRORS[status], "model": ErrorBody} for status in sorted(sent)}
    if unprocessable is not None:
        found[422] = {"description": unprocessable, "model": ErrorBody}
    return found


def set_failures(*statuses: int) -> Responses:
    """The `responses` of a route that changes a set."""
    found = failures(400, 404, 412, *statuses, body=True)
    found[422] = {
        "description": "Adapters of the set cannot be served; the old set goes on.",
        "model": BadSetBody | ErrorBody,
    }
    return found


def with_etag(description: str) -> dict[str, Any]:
    """A successful answer that has an ETag."""
    return {"description": description, "headers": _ETAG}
