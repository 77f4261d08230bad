"""`GET /`: the dashboard, static files without data. What they show, their scripts ask for with the
admin key that is typed into them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request, Response

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_HEADERS = {
    # Nothing of other origins, nothing inline, and no text becomes markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
}


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    etag: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.content).hexdigest()
        object.__setattr__(self, "etag", f'"{digest[:32]}"')


def _read() -> Iterator[tuple[str, _File]]:
    for file in files("server.admin").joinpath("web").iterdir():
        media_type = _TYPES.get(PurePath(file.name).suffix)
        if media_type is not None:
            path = "/" if file.name == "index.html" else f"/web/{file.name}"
            yield path, _File(file.read_bytes(), media_type)


_FILES = dict(_read())

PATHS = frozenset(_FILES)
"""The files, which are served without the admin key."""

router = APIRouter()


async def get_file(http: Request) -> Response:
    file = _FILES[http.scope["path"]]
    headers = {**_HEADERS, "ETag": file.etag}
    if file.etag in http.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


for _path in sorted(PATHS):
    # Each is a route of its own, so that no path of a client is ever looked up on a disk.
    router.add_api_route(_path, get_file, include_in_schema=False)
