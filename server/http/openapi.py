"""The OpenAPI document, and `/docs`: the same as a page."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment
from markupsafe import Markup, escape

_METHODS = ("get", "put", "post", "delete", "patch")
_VALIDATION = "HTTPValidationError"
_REF = "#/components/schemas/"

docs_router = APIRouter()

DOCS = "/docs"

_PAGE = files("server.http").joinpath("docs.html").read_text(encoding="utf-8")
_STYLE = _PAGE.partition("<style>")[2].partition("</style>")[0]
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    # Nothing is loaded, nothing runs: the page is text and one style.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def correct_document(app: FastAPI) -> None:
    """Takes FastAPI's 422 out of the app's document: what is malformed is a 400 here."""
    build = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = build()
            for _, _, operation in _operations(document):
                _drop_validation(operation["responses"])
            for unused in (_VALIDATION, "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_validation(responses: dict[str, Any]) -> None:
    content = responses.get("422", {}).get("content", {}).get("application/json", {})
    if content.get("schema", {}).get("$ref") == _REF + _VALIDATION:
        del responses["422"]


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                yield path, method, operations[method]


@docs_router.get(DOCS, include_in_schema=False)
async def docs(http: Request) -> HTMLResponse:
    """The OpenAPI document as a page, without scripts. It is made once: some may ask without a
    key."""
    state = http.app.state
    if not hasattr(state, "docs_page"):
        state.docs_page = _page(http.app.openapi())
    return HTMLResponse(state.docs_page, headers=_HEADERS)


def _page(document: dict[str, Any]) -> str:
    return _TEMPLATE.render(
        info=document["info"],
        operations=list(_operations(document)),
        schemas=document["components"]["schemas"],
    )


def _type_of(schema: dict[str, Any]) -> Markup:
    """A schema in a few words, with links to those that it names."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return Markup('<a href="#{0}">{0}</a>').format(name)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return Markup(" or ").join(_type_of(part) for part in schema[union])
    if "const" in schema:
        return Markup("<code>{}</code>").format(repr(schema["const"]))
    if "enum" in schema:
        return Markup(" or ").join(Markup("<code>{}</code>").format(v) for v in schema["enum"])
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return Markup("list of ") + _type_of(schema.get("items", {}))
    more = schema.get("additionalProperties")
    if kind == "object" and isinstance(more, dict):
        return Markup("object of ") + _type_of(more)
    return escape(kind + _range_of(schema))


def _range_of(schema: dict[str, Any]) -> str:
    parts = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return f" {', '.join(parts)}" if parts else ""


_ENVIRONMENT = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["type"] = _type_of
_TEMPLATE = _ENVIRONMENT.from_string(_PAGE)
