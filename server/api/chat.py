"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    TokenEvent,
    Tokenizer,
    TokenLogprob,
)
from remix_runtime.errors import InvalidRequestError
from server.api.calls import open_call
from server.api.completions import finite
from server.api.documentation import generation_responses
from server.api.generation import Choice, finished_by, sampling_params, tokens_to_generate
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
    Usage,
)
from server.api.wire.requests import ChatRequest
from server.http.body import StrictRoute
from server.live.sets import Target
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
    max_tokens = tokens_to_generate(
        asked=body.max_completion_tokens or body.max_tokens,
        default=services.settings.default_max_tokens,
        prompt_tokens=len(prompt),
        context=engine.model.max_model_len,
        param="messages",
    )
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    requests = [
        GenerationRequest(
            request_id=f"{answer_id}-{choice}",
            prompt_token_ids=tuple(prompt),
            params=sampling_params(body, max_tokens=max_tokens, logprobs=logprobs, choice=choice),
            digest=call.target.digest,
            tenant=call.tenant,
        )
        for choice in range(n)
    ]
    call.admission.reserve_tokens(len(prompt) + n * max_tokens)
    writer = ChatWriter(
        answer_id,
        call.target,
        engine.tokenizer,
        prompt_tokens=len(prompt),
        num_choices=n,
        include_usage=body.include_usage,
    )
    return GenerationResponse(services, call, requests, writer, stream=bool(body.stream))


class ChatWriter:
    """The wire form of one chat answer, whole or in chunks."""

    def __init__(
        self,
        answer_id: str,
        target: Target,
        tokenizer: Tokenizer,
        *,
        prompt_tokens: int,
        num_choices: int,
        include_usage: bool,
    ) -> None:
        self._id = answer_id
        self._target = target
        self._tokenizer = tokenizer
        self.prompt_tokens = prompt_tokens
        self._num_choices = num_choices
        self._include_usage = include_usage
        self._created = int(time.time())

    def opening(self) -> Iterable[str]:
        for index in range(self._num_choices):
            delta = ChatDelta(role="assistant", content="")
            yield self._chunk([ChatChunkChoice(index=index, delta=delta)])

    def chunks(self, index: int, event: TokenEvent) -> Iterable[str]:
        if event.text or event.logprobs or event.finish_reason:
            choice = ChatChunkChoice(
                index=index,
                delta=ChatDelta(content=event.text or None),
                logprobs=self._logprobs(event.logprobs),
                finish_reason=finished_by(event),
            )
            yield self._chunk([choice])

    def closing(self, choices: Sequence[Choice]) -> Iterable[str]:
        if self._include_usage:
            yield self._chunk([], self._usage(choices))

    def whole(self, choices: Sequence[Choice]) -> str:
        answers = []
        for index, choice in enumerate(choices):
            assert choice.finished_by is not None
            answers.append(
                ChatChoice(
                    index=index,
                    message=ChatMessage(content=choice.text),
                    logprobs=self._logprobs(choice.positions or None),
                    finish_reason=choice.finished_by,
                )
            )
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._target.name,
            system_fingerprint=self._target.fingerprint,
            choices=answers,
            usage=self._usage(choices),
        ).model_dump_json()

    def _chunk(self, choices: list[ChatChunkChoice], usage: Usage | None = None) -> str:
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._target.name,
            system_fingerprint=self._target.fingerprint,
            choices=choices,
            usage=usage,
        )
        # OpenAI's streams have `usage: null` in every chunk only if usage was asked for.
        return chunk.model_dump_json(exclude=None if self._include_usage else {"usage"})

    def _usage(self, choices: Sequence[Choice]) -> Usage:
        return Usage.of(self.prompt_tokens, sum(choice.num_tokens for choice in choices))

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
        token = self._tokenizer.token_text(entry.token_id)
        # A token that is half a character has no bytes that its text could tell.
        as_bytes = None if "\ufffd" in token else list(token.encode())
        return TopLogprob(token=token, logprob=finite(entry.logprob), bytes=as_bytes)
