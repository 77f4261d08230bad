"""`POST /v1/chat/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import PositionLogprobs, TokenEvent, TokenLogprob
from remix_runtime.errors import InvalidRequestError
from server.api.calls import open_call
from server.api.documentation import generation_responses
from server.api.generation import Choice, admit_sequences, finished_by
from server.api.streaming import GenerationResponse
from server.api.tokenizing import require_short, run_tokenizer
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
from server.api.wire.requests import ChatRequest
from server.api.writer import Writer, finite
from server.http.body import StrictRoute
from server.services import services_of

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", responses=generation_responses(ChatCompletion))
async def create_chat_completion(body: ChatRequest, http: Request) -> Response:
    """Answers a chat with the base model's chat template; OpenAI's API with vLLM's extras."""
    services = services_of(http)
    call = open_call(http, body.model)
    engine, n = services.engine, body.choices_per_prompt
    if n > services.max_choices:
        raise InvalidRequestError(
            f"n: found {n}, expected at most {services.max_choices}", param="n"
        )
    require_short(engine, sum(len(m.content) for m in body.messages), "messages")
    messages = [message.for_template() for message in body.messages]
    prompt = await run_tokenizer(engine.tokenizer.apply_chat_template, messages)
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    requests = admit_sequences(
        call,
        engine.model,
        body,
        [prompt],
        answer_id=answer_id,
        max_tokens=body.most_tokens,
        default_max_tokens=services.settings.default_max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        param="messages",
    )
    writer = ChatWriter(
        answer_id=answer_id,
        target=call.target,
        tokenizer=engine.tokenizer,
        prompt_tokens=len(prompt),
        num_choices=n,
        include_usage=body.include_usage,
    )
    return GenerationResponse(services, call, requests, writer, stream=bool(body.stream))


@dataclass(kw_only=True)
class ChatWriter(Writer):
    chunk_type, whole_type = ChatCompletionChunk, ChatCompletion

    num_choices: int

    def opening(self) -> Iterable[str]:
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
