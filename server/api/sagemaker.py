"""`/invocations` and `/ping`: what SageMaker calls a model's container by."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Discriminator, Tag

from server.api.calls import CountedRoute
from server.api.chat import create_chat_completion
from server.api.completions import create_completion
from server.api.documentation import generation_responses
from server.api.probes import DOWN, health
from server.api.wire.answers import ChatCompletion, Completion, Status
from server.api.wire.chat import ChatRequest
from server.api.wire.completions import CompletionRequest

router = APIRouter(route_class=CountedRoute)


def _kind(body: Any) -> str:
    if isinstance(body, dict):
        return "<completion>" if "prompt" in body else "<chat>"
    return "<completion>" if isinstance(body, CompletionRequest) else "<chat>"


_Invocation = Annotated[
    Annotated[ChatRequest, Tag("<chat>")] | Annotated[CompletionRequest, Tag("<completion>")],
    Discriminator(_kind),
]


@router.post("/invocations", responses=generation_responses(ChatCompletion | Completion))
async def invoke(body: _Invocation, http: Request) -> Response:
    """A chat, or completions where the body has a `prompt`: as their own paths have it."""
    if isinstance(body, ChatRequest):
        return await create_chat_completion(body, http)
    return await create_completion(body, http)


router.add_api_route("/ping", health, response_model=Status, responses=DOWN)
