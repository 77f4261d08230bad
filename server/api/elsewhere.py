"""Paths of OpenAI's and vLLM's APIs that a server of text generation does not have."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request

from server.http.errors import ApiError

router = APIRouter(include_in_schema=False)

_PATHS = {
    "embeddings": ("/v1/embeddings", "/embeddings", "/v2/embed", "/pooling", "/classify"),
    "scores": ("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    "moderation": ("/v1/moderations",),
    "audio": ("/v1/audio/{rest:path}", "/v1/realtime/{rest:path}"),
    "images": ("/v1/images/{rest:path}", "/v1/videos", "/v1/videos/{rest:path}"),
    "edits (a chat can do it)": ("/v1/edits",),
    "files": ("/v1/files", "/v1/files/{rest:path}", "/v1/uploads", "/v1/uploads/{rest:path}"),
    "batches": ("/v1/batches", "/v1/batches/{rest:path}"),
    "finetuning (adapters are trained with `remix train`)": (
        "/v1/fine_tuning/{rest:path}",
        "/v1/fine-tunes",
    ),
    "assistants": ("/v1/assistants", "/v1/assistants/{rest:path}", "/v1/threads/{rest:path}"),
}
"""What a path is for: the paths."""


async def refuse(http: Request) -> None:
    """Says what is not there."""
    route = http.scope["route"].path
    asked = next(name for name, paths in _PATHS.items() if route in paths)
    raise ApiError(
        HTTPStatus.BAD_REQUEST,
        f"This server generates text; it has no {asked}.",
        code="unsupported_endpoint",
    )


for _path in (path for paths in _PATHS.values() for path in paths):
    router.add_api_route(_path, refuse, methods=["GET", "POST", "DELETE"])
