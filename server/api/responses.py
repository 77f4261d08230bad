"""`POST /v1/responses`, and what is remembered of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import SamplingParams
from remix_runtime.errors import InvalidRequestError
from server.api.arms import answered
from server.api.calls import Call, CountedRoute, open_call
from server.api.conversation import open_conversation, prompt_of
from server.api.documentation import error_responses, generation_responses
from server.api.response_input import chat_form
from server.api.response_writer import ResponseWriter
from server.api.streaming import GenerationResponse
from server.api.translation import ChatForm, TranslatedResponse
from server.api.wire.chat import ChatRequest
from server.api.wire.response_answers import (
    AnsweredReasoning,
    AnsweredText,
    DeletedResponse,
    InputTokens,
    ResponseObject,
)
from server.api.wire.response_items import ITEM, InputItem, ItemReference
from server.api.wire.responses import Reasoning, ResponsesRequest
from server.api.wire.written import write_json
from server.http.body import SMALL_BODY_BYTES, run_if_large, run_in_worker
from server.http.errors import ApiError, ErrorBody
from server.http.request import state_of
from server.live.remembered import Memory, Remembered
from server.live.sets import Target
from server.services import services_of

router = APIRouter(route_class=CountedRoute)

_MAX_REFERENCED = 4 << 20
"""Characters that a request's references may stand for: as many as a body may have."""


@router.post("/v1/responses", responses=generation_responses(ResponseObject))
async def create_response(body: ResponsesRequest, http: Request) -> Response:
    """Answers with items: words, thoughts and calls of tools; OpenAI's Responses API."""
    services, tenant = services_of(http), state_of(http.scope).tenant

    async def answer(call: Call) -> Response:
        # Behind the name, which is looked at first: what is remembered may be much to read.
        answer_id = f"resp_{uuid.uuid4().hex}"
        before, given = _remembered_items(services.memory, tenant, body)
        form, chat_body, items = await _as_chat(http, body, before, given)
        try:
            chat = await open_conversation(
                services, call, chat_body, answer_id=answer_id, param="input"
            )
        except InvalidRequestError as error:
            raise form.refusal(error) from error

        def remember(answer: ResponseObject) -> None:
            if answer.store:
                remembered = Remembered(
                    id=answer.id,
                    answer=write_json(answer),
                    context=[*before, *(item.model_dump_json(exclude_none=True) for item in items)],
                    output=[(item.id, write_json(item)) for item in answer.output],
                )
                services.memory.keep(tenant, remembered)

        writer = ResponseWriter(
            answer_id=answer_id,
            target=call.target,
            tokenizer=services.engine.tokenizer,
            prompt_tokens=chat.prompt_tokens,
            request=chat.requests[0],
            response=_begun(answer_id, call.target, chat.requests[0].params, body),
            make_parser=chat.make_parser,
            remember=remember,
            renamed=form.renamed,
        )
        generated = GenerationResponse(services, chat, writer, stream=bool(body.stream))
        return TranslatedResponse(form, generated)

    return await answered(http, body.model, body.conversation, answer)


@router.post("/v1/responses/input_tokens", responses=error_responses())
async def count_input_tokens(body: ResponsesRequest, http: Request) -> InputTokens:
    """Counts the tokens that the prompt of such a response would have."""
    services, state = services_of(http), state_of(http.scope)
    call = await open_call(http, body.model)
    before, given = _remembered_items(services.memory, state.tenant, body)
    form, chat, _ = await _as_chat(http, body, before, given)
    try:
        template = call.defaults.chat_template
        prompt = await prompt_of(services, state, chat, template, param="input")
    except InvalidRequestError as error:
        raise form.refusal(error) from error
    return InputTokens(input_tokens=len(prompt))


@router.get(
    "/v1/responses/{response_id}",
    response_model=ResponseObject,
    responses={400: {"model": ErrorBody}, 404: {"model": ErrorBody}},
)
async def get_response(response_id: str, http: Request, stream: bool = False) -> Response:
    """Shows a response that this server remembers."""
    if stream:
        message = "stream: this server does not support it for a response that is there"
        raise ApiError(HTTPStatus.BAD_REQUEST, message, param="stream")
    memory = services_of(http).memory
    found = _find(memory, state_of(http.scope).tenant, response_id, "response_id")
    return Response(found.answer, media_type="application/json")


@router.delete("/v1/responses/{response_id}", responses={404: {"model": ErrorBody}})
async def delete_response(response_id: str, http: Request) -> DeletedResponse:
    """Forgets a response."""
    memory, tenant = services_of(http).memory, state_of(http.scope).tenant
    _find(memory, tenant, response_id, "response_id")
    memory.forget(tenant, response_id)
    return DeletedResponse(id=response_id)


@router.post("/v1/responses/{rest:path}", include_in_schema=False)
async def refuse(rest: str) -> None:
    """Compaction, and the end of what runs in the background: clients ask whether they are there,
    and take a 404 for a no."""
    message = f"There is nothing to do at /v1/responses/{rest[:100]}; send the items that matter."
    raise ApiError(HTTPStatus.NOT_FOUND, message, code="unsupported_endpoint")


def _find(memory: Memory, tenant: str, response_id: str, param: str) -> Remembered:
    found = memory.find(tenant, response_id)
    if found is None:
        raise ApiError(
            HTTPStatus.NOT_FOUND,
            f"{param}: found {response_id[:100]!r}, expected a response of this server that was "
            f"stored; it remembers the newest {memory.max_answers} at most, until it is restarted.",
            param=param,
            code="previous_response_not_found",
        )
    return found


def _remembered_items(
    memory: Memory, tenant: str, body: ResponsesRequest
) -> tuple[Sequence[str], list[InputItem | str]]:
    """The items before this request's own, as JSON, and its own, JSON in the places of references.
    Raises `ApiError`."""
    before: list[str] = []
    if body.previous_response_id is not None:
        found = _find(memory, tenant, body.previous_response_id, "previous_response_id")
        before = [*found.context, *(item for _, item in found.output)]
    items: list[InputItem | str] = []
    size = 0
    for index, item in enumerate(body.input):
        if isinstance(item, ItemReference):
            stored = memory.find_item(tenant, item.id)
            param = f"input[{index}].id"
            if stored is None:
                message = f"{param}: found {item.id[:100]!r}, expected an item of a stored response"
                raise ApiError(HTTPStatus.NOT_FOUND, message, param=param, code="item_not_found")
            size += len(stored)
            if size > _MAX_REFERENCED:
                message = f"{param}: expected references to at most {_MAX_REFERENCED} characters"
                raise ApiError(HTTPStatus.BAD_REQUEST, message, param=param)
            items.append(stored)
        else:
            items.append(item)
    return before, items


async def _as_chat(
    http: Request, body: ResponsesRequest, before: Sequence[str], given: Sequence[InputItem | str]
) -> tuple[ChatForm, ChatRequest, list[InputItem]]:
    """The request as a chat, and its own items. Raises `ApiError`, `EngineBusyError`."""

    def translate() -> tuple[ChatForm, ChatRequest, list[InputItem]]:
        items = [_item(item) if isinstance(item, str) else item for item in given]
        form = chat_form(body, list(map(_item, before)), items)
        return form, form.validated(), items

    stored = sum(len(item) for item in (*before, *given) if isinstance(item, str))
    if stored <= SMALL_BODY_BYTES:
        return await run_if_large(http, translate)
    return await run_in_worker(http, translate)


def _item(stored: str) -> InputItem:
    return ITEM.validate_json(stored)


def _begun(
    answer_id: str, target: Target, params: SamplingParams, body: ResponsesRequest
) -> ResponseObject:
    """The response before its first token."""
    asked_format = body.text.format if body.text else None
    reasoning = body.reasoning or Reasoning()
    return ResponseObject(
        id=answer_id,
        created_at=int(time.time()),
        model=target.name,
        system_fingerprint=target.fingerprint,
        instructions=body.instructions,
        previous_response_id=body.previous_response_id,
        store=body.store is not False,
        tools=body.tools or [],
        tool_choice=body.tool_choice or "auto",
        parallel_tool_calls=body.parallel_tool_calls is not False,
        max_tool_calls=body.max_tool_calls,
        text=AnsweredText() if asked_format is None else AnsweredText(format=asked_format),
        reasoning=AnsweredReasoning(effort=reasoning.effort, summary=reasoning.summary),
        temperature=params.temperature,
        top_p=params.top_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        max_output_tokens=body.max_output_tokens,
        top_logprobs=body.top_logprobs or 0,
        metadata=body.metadata or {},
        user=body.user,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        prompt_cache_retention=body.prompt_cache_retention,
    )
