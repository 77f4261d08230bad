"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import TokenEvent
from server.api.conversation import open_conversation
from server.api.documentation import generation_responses
from server.api.generation import Choice, finished_by
from server.api.logprobs import chat_logprobs
from server.api.streaming import GenerationResponse
from server.api.token_texts import Placed
from server.api.wire.answers import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
)
from server.api.wire.chat import ChatRequest
from server.api.writer import ChoicesWriter, Event
from server.http.body import StrictRoute
from server.services import services_of

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion))
async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
    """Answers a chat with the base model's chat template; OpenAI's API with vLLM's extras."""
    services, answer_id = services_of(http), f"chatcmpl-{uuid.uuid4().hex}"
    chat = await open_conversation(http, body, answer_id=answer_id)
    writer = ChatWriter(
        answer_id=body.request_id or answer_id,
        target=chat.call.target,
        tokenizer=services.engine.tokenizer,
        prompt_tokens=chat.prompt_tokens,
        body=body,
        requests=chat.requests,
    )
    return GenerationResponse(
        services,
        chat.call,
        chat.requests,
        writer,
        stream=bool(body.stream),
        fields=body.engine_fields,
    )


@dataclass(kw_only=True)
class ChatWriter(ChoicesWriter):
    chunk_type, whole_type = ChatCompletionChunk, ChatCompletion

    body: ChatRequest

    def opening(self) -> Iterable[Event]:
        for index in range(len(self.requests)):
            delta = ChatDelta(role="assistant", content="")
            choice = ChatChunkChoice(index=index, delta=delta)
            yield self._chunk(choice, prompt_token_ids=self._prompt_token_ids(index))

    def _choice_of_chunk(
        self, index: int, event: TokenEvent, placed: Sequence[Placed]
    ) -> ChatChunkChoice:
        return ChatChunkChoice(
            index=index,
            delta=ChatDelta(content=event.text or None),
            logprobs=self._logprobs(index, placed) if placed else None,
            finish_reason=finished_by(event),
            token_ids=self._token_ids(event),
        )

    def _choice_of_whole(self, index: int, choice: Choice) -> ChatChoice:
        assert choice.finished_by is not None
        return ChatChoice(
            index=index,
            message=ChatMessage(content=choice.text),
            logprobs=self._whole_logprobs(index, choice),
            finish_reason=choice.finished_by,
            token_ids=self._token_ids(choice),
        )

    def _whole_logprobs(self, index: int, choice: Choice) -> ChatLogprobs | None:
        if not self.body.logprobs:
            return None
        placement = self._placement(index)
        return self._logprobs(index, placement.push(choice.text, choice.positions, ended=True))

    def _logprobs(self, index: int, placed: Sequence[Placed]) -> ChatLogprobs:
        return chat_logprobs(self._texts, self._placement(index), placed)

    def _of_prompt(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            "prompt_token_ids": self._prompt_token_ids(0),
            "prompt_logprobs": self._prompt_logprobs(choices[0]),
        }
