"""Adapters: import, look at, delete, collect garbage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from remix_runtime.adapter.checkpoint import read_curves
from remix_runtime.adapter.load import Routing
from server.admin import schemas
from server.admin.documentation import failures
from server.admin.imports import describe_adapters, import_adapter
from server.admin.pages import After, page
from server.admin.routing import admin_router
from server.admin.services import ACTOR, AdminServices, admin_services
from server.http.errors import as_api_error
from server.http.lines import one_line
from server.live.garbage import MIN_AGE_SECONDS, collect_garbage
from server.store import Progress, UnknownDigestError

router = admin_router()

NDJSON = "application/x-ndjson"

_IMPORTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Imported before. With `Accept: application/x-ndjson` every answer is a "
        '200 of lines: `{"progress": {"done": …, "total": …}}` in bytes, then '
        '`{"adapter": …, "created": …}` or `{"error": …}`.',
        "model": schemas.Adapter,
        "content": {NDJSON: {}},
    },
    201: {"description": "Imported now.", "model": schemas.Adapter},
}


@router.get(
    "/adapters", response_model=schemas.Listed[schemas.Adapter], responses=failures(400, 404)
)
async def list_adapters(
    http: Request,
    limit: Annotated[
        int, Query(ge=1, le=schemas.MAX_ADAPTER_PAGE, description="Items of the page.")
    ] = schemas.MAX_ADAPTER_PAGE,
    after: After = None,
) -> Response:
    """Lists imported adapters, oldest first; `after` of the next page is the last one's digest."""
    services = admin_services(http)

    async def items(most: int) -> list[schemas.Adapter]:
        records = await services.directory.adapters(limit=most, after=after)
        return await describe_adapters(services, records)

    return await page(schemas.Adapter, limit, items)


@router.post(
    "/adapters",
    status_code=HTTPStatus.CREATED,
    response_model=schemas.Adapter,
    responses=_IMPORTED
    | failures(
        *(502, 507),
        body=True,
        unprocessable="The source is refused, or what it holds is no valid adapter.",
    ),
)
async def import_adapter_from_source(
    body: schemas.ImportAdapter, http: Request, answer: Response
) -> schemas.Adapter | Response:
    """Copies an adapter into the store, checks it and registers it. An import that broke off
    continues where it was when it is asked for again."""
    services = admin_services(http)
    if NDJSON in http.headers.get("accept", ""):
        return StreamingResponse(import_lines(services, body.source), media_type=NDJSON)
    record, created = await import_adapter(services, body.source)
    if not created:
        answer.status_code = HTTPStatus.OK
    (adapter,) = await describe_adapters(services, [record])
    return adapter


async def import_lines(services: AdminServices, source: str) -> AsyncGenerator[str, None]:
    news: asyncio.Queue[Progress | None] = asyncio.Queue()
    importing = asyncio.ensure_future(import_adapter(services, source, progress=news.put_nowait))
    importing.add_done_callback(lambda _: news.put_nowait(None))
    try:
        while (progress := await news.get()) is not None:
            yield _line(schemas.ImportProgress(progress=progress))
        try:
            record, created = importing.result()
            (adapter,) = await describe_adapters(services, [record])
        except Exception as error:
            yield _line(as_api_error(error).body)
        else:
            yield _line(schemas.Imported(adapter=adapter, created=created))
    finally:
        importing.cancel()  # the client went away; importing again continues


def _line(document: BaseModel) -> str:
    return one_line(document.model_dump_json()) + "\n"


@router.get("/adapters/{digest}", responses=failures(404))
async def get_adapter(digest: str, http: Request) -> schemas.Adapter:
    """One adapter: what it is, who uses it, its state on this server."""
    services = admin_services(http)
    record = await services.directory.adapter(digest)
    (adapter,) = await describe_adapters(services, [record])
    return adapter


@router.get("/adapters/{digest}/routing", responses=failures(404))
async def get_routing(digest: str, http: Request) -> Routing:
    """How recent traffic of this server uses the adapter's experts, and how that compares with the
    training data. No modules while the engine does not hold the adapter, and where it does not
    count."""
    services = admin_services(http)
    record = await services.directory.adapter(digest)
    return services.routing.now(record.digest)


@router.get("/adapters/{digest}/training", responses=failures(404))
async def get_training(digest: str, http: Request) -> schemas.Training:
    """The curves of the run that made the adapter; none where its folder has no `training.json`,
    or this server's store has no copy of it yet."""
    services = admin_services(http)
    record = await services.directory.adapter(digest)
    try:
        folder = services.store.folder(record.digest)
    except UnknownDigestError:
        return schemas.Training(curves={})
    curves = await asyncio.to_thread(read_curves, folder)
    return schemas.Training.model_validate({"curves": curves})


@router.delete(
    "/adapters/{digest}", status_code=HTTPStatus.NO_CONTENT, responses=failures(404, 409)
)
async def delete_adapter(digest: str, http: Request) -> None:
    """Deletes an adapter; refused while a tenant's set names it. Its files go with the next garbage
    collection."""
    await admin_services(http).directory.delete_adapter(digest, actor=ACTOR)


@router.post("/adapters/collect-garbage", responses=failures(400, 507))
async def collect_adapter_garbage(
    http: Request,
    min_age_seconds: Annotated[
        # Below a minute an import could lose its folder before it is registered.
        float, Query(ge=60, le=10**9, description="Younger folders stay.")
    ] = MIN_AGE_SECONDS,
) -> schemas.Collected:
    """Removes from this server's store what is neither registered nor pinned."""
    services = admin_services(http)
    removed = await collect_garbage(
        services.directory, services.store, services.adapters, min_age_seconds=min_age_seconds
    )
    return schemas.Collected(removed=removed)


@router.get("/quarantine", responses=failures())
async def list_quarantine(http: Request) -> schemas.Listed[schemas.Quarantined]:
    """Lists what was imported and refused as no valid adapter, newest first."""
    found = await asyncio.to_thread(admin_services(http).store.quarantined)
    data = [schemas.Quarantined.model_validate(item) for item in found]
    return schemas.Listed(data=data)
