"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: Anthropic's API."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request, Response

from remix_runtime.errors import InvalidRequestError
from server.api.arms import answered
from server.api.calls import Call, CountedRoute, open_call
from server.api.conversation import open_conversation, prompt_of
from server.api.documentation import error_responses, generation_responses
from server.api.message_input import chat_form
from server.api.message_writer import MessageWriter
from server.api.streaming import GenerationResponse
from server.api.translation import ChatForm, TranslatedResponse
from server.api.wire.chat import ChatRequest
from server.api.wire.message_answers import AnsweredMessage, TokenCounted
from server.api.wire.messages import CountTokensRequest, MessagesRequest
from server.http.anthropic import AnthropicErrorBody
from server.http.body import run_if_large
from server.http.request import state_of
from server.services import services_of

router = APIRouter(route_class=CountedRoute)


@router.post("/v1/messages", responses=generation_responses(AnsweredMessage, AnthropicErrorBody))
async def create_message(body: MessagesRequest, http: Request) -> Response:
    """Answers a conversation with blocks: words, thoughts and uses of tools; Anthropic's API."""
    services = services_of(http)

    async def answer(call: Call) -> Response:
        answer_id = f"msg_{uuid.uuid4().hex}"
        form, chat_body = await run_if_large(http, _as_chat, body)
        try:
            chat = await open_conversation(services, call, chat_body, answer_id=answer_id)
        except InvalidRequestError as error:
            raise form.refusal(error) from error
        writer = MessageWriter(
            answer_id=answer_id,
            target=call.target,
            tokenizer=services.engine.tokenizer,
            prompt_tokens=chat.prompt_tokens,
            make_parser=chat.make_parser,
            renamed=form.renamed,
            request_id=state_of(http.scope).request_id,
            omits_thoughts=body.omits_thoughts,
            stops=body.stop_sequences or (),
        )
        generated = GenerationResponse(services, chat, writer, stream=bool(body.stream))
        return TranslatedResponse(form, generated)

    return await answered(http, body.model, body.conversation, answer)


@router.post(
    "/v1/messages/count_tokens",
    responses=error_responses(AnthropicErrorBody),
)
async def count_tokens(body: CountTokensRequest, http: Request) -> TokenCounted:
    """Counts the tokens that the prompt of such a message would have."""
    call = await open_call(http, body.model)
    form, chat = await run_if_large(http, _as_chat, body)
    try:
        prompt = await prompt_of(
            services_of(http), state_of(http.scope), chat, call.defaults.chat_template
        )
    except InvalidRequestError as error:
        raise form.refusal(error) from error
    return TokenCounted(input_tokens=len(prompt))


def _as_chat(body: CountTokensRequest) -> tuple[ChatForm, ChatRequest]:
    form = chat_form(body)
    return form, form.validated()
