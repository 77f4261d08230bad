"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import PositionLogprobs, TokenEvent, TokenLogprob
from server.api.conversation import open_conversation
from server.api.documentation import generation_responses
from server.api.generation import Choice, finished_by
from server.api.streaming import GenerationResponse
from server.api.wire.answers import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatTokenLogprob,
    TopLogprob,
)
from server.api.wire.chat import ChatRequest
from server.api.writer import ChoicesWriter, Event, finite
from server.http.body import StrictRoute
from server.services import services_of

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion))
async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
    """Answers a chat with the base model's chat template; OpenAI's API with vLLM's extras."""
    services, answer_id = services_of(http), f"chatcmpl-{uuid.uuid4().hex}"
    chat = await open_conversation(http, body, answer_id=answer_id)
    writer = ChatWriter(
        answer_id=answer_id,
        target=chat.call.target,
        tokenizer=services.engine.tokenizer,
        prompt_tokens=chat.prompt_tokens,
        num_choices=len(chat.requests),
        include_usage=body.include_usage,
    )
    return GenerationResponse(services, chat.call, chat.requests, writer, stream=bool(body.stream))


@dataclass(kw_only=True)
class ChatWriter(ChoicesWriter):
    chunk_type, whole_type = ChatCompletionChunk, ChatCompletion

    num_choices: int

    def opening(self) -> Iterable[Event]:
        for index in range(self.num_choices):
            delta = ChatDelta(role="assistant", content="")
            yield self._chunk(ChatChunkChoice(index=index, delta=delta))

    def _choice_of_chunk(self, index: int, event: TokenEvent) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=event.text or None),
            logprobs=self._logprobs(event.logprobs),
            finish_reason=finished_by(event),
        )

    def _choice_of_whole(self, index: int, choice: Choice) -> ChatChoice:
        assert choice.finished_by is not None
        return ChatChoice(
            index=index,
            message=ChatMessage(content=choice.text),
            logprobs=self._logprobs(choice.positions or None),
            finish_reason=choice.finished_by,
        )

    def _logprobs(self, positions: Sequence[PositionLogprobs] | None) -> ChatLogprobs | None:
        if positions is None:
            return None
        content = []
        for position in positions:
            top = [self._entry(entry) for entry in position.top]
            chosen = self._entry(position.chosen)
            content.append(ChatTokenLogprob(**chosen.model_dump(), top_logprobs=top))
        return ChatLogprobs(content=content)

    def _entry(self, entry: TokenLogprob) -> TopLogprob:
        token = self.tokenizer.token_text(entry.token_id)
        # A token that is half a character has no bytes that its text could tell.
        as_bytes = None if "\ufffd" in token else list(token.encode())
        return TopLogprob(token=token, logprob=finite(entry.logprob), bytes=as_bytes)
