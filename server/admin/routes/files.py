"""The files of adapters: sent by who made one, fetched by who compares another with it."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import Request
from fastapi.responses import FileResponse
from starlette.requests import ClientDisconnect

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from server.admin import schemas
from server.admin.documentation import Responses, failures
from server.admin.routing import admin_router
from server.admin.services import admin_services
from server.http.body import ClientGoneError
from server.http.errors import ApiError

router = admin_router()

_BINARY = "application/octet-stream"
_CONTENT = {_BINARY: {"schema": {"type": "string", "format": "binary"}}}
_BYTES: Responses = {200: {"description": "Its bytes.", "content": _CONTENT}}


@router.put(
    "/uploads/{digest}/{name}",
    status_code=HTTPStatus.NO_CONTENT,
    responses=failures(
        *(400, 404, 411, 415, 507),
        unprocessable="The file is larger than that of a source may be.",
    ),
    openapi_extra={"requestBody": {"content": _CONTENT, "required": True}},
)
async def upload_file(digest: str, name: str, http: Request) -> None:
    """Takes one file of an adapter. When all of them are there, `POST /adapters` imports them from
    the source `upload://DIGEST`; nothing of them is looked at before. A file that was sent before
    is replaced. One that nobody imports is removed after a day."""
    _require_file(digest, name)
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _BINARY:
        raise ApiError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type: found {kind[:100]!r}, expected {_BINARY!r}",
            code="unsupported_media_type",
        )
    announced = http.headers.get("content-length", "")
    if not announced.isdecimal():
        raise ApiError(
            HTTPStatus.LENGTH_REQUIRED,
            "Content-Length: found none, expected the size of the file",
            param="Content-Length",
        )
    try:
        await admin_services(http).store.uploads.receive(
            digest, name, int(announced[:20]), http.stream()
        )
    except ClientDisconnect:
        raise ClientGoneError from None


@router.get("/adapters/{digest}/files", responses=failures(404))
async def list_files(digest: str, http: Request) -> schemas.Listed[schemas.AdapterFile]:
    """Lists the files of an adapter."""
    services = admin_services(http)
    folder = await services.folders((await services.directory.adapter(digest)).digest)
    sizes = {name: folder / name for name in MAX_BYTES if (folder / name).is_file()}
    return schemas.Listed(
        data=[schemas.AdapterFile(name=n, size=path.stat().st_size) for n, path in sizes.items()]
    )


@router.get(
    "/adapters/{digest}/files/{name}",
    response_class=FileResponse,
    responses=_BYTES | failures(404),
)
async def get_file(digest: str, name: str, http: Request) -> FileResponse:
    """One file of an adapter, as it was imported."""
    services = admin_services(http)
    folder = await services.folders((await services.directory.adapter(digest)).digest)
    _require_file(digest, name, is_there=name in MAX_BYTES and (folder / name).is_file())
    return FileResponse(folder / name, media_type=_BINARY)


def _require_file(digest: str, name: str, *, is_there: bool = True) -> None:
    if name not in MAX_BYTES or not is_there:
        message = f"adapter {digest[:64]} has no file {name[:80]!r}"
        raise ApiError(HTTPStatus.NOT_FOUND, message, code="not_found")
