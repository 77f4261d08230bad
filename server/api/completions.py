"""`POST /v1/completions`."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import PositionLogprobs, TokenEvent, Tokenizer
from remix_runtime.errors import InvalidRequestError
from server.api.calls import open_call
from server.api.documentation import generation_responses
from server.api.generation import Choice, admit_sequences, finished_by
from server.api.streaming import GenerationResponse
from server.api.tokenizing import require_short, run_tokenizer
from server.api.wire.answers import Completion, CompletionChoice, CompletionLogprobs
from server.api.wire.completions import CompletionRequest
from server.api.writer import ChoicesWriter, Event, finite
from server.http.body import StrictRoute
from server.services import services_of

router = APIRouter(route_class=StrictRoute)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@router.post("/v1/completions", responses=generation_responses(Completion))
async def create_completion(body: CompletionRequest, http: Request) -> Response:
    """Completes each prompt; OpenAI's API with vLLM's extra sampling parameters."""
    services = services_of(http)
    call = open_call(http, body.model)
    engine, n = services.engine, body.choices_per_prompt
    if len(body.prompt) * n > services.max_choices:
        raise InvalidRequestError(
            f"{len(body.prompt)} prompts times n = {n} is more than the "
            f"{services.max_choices} sequences that one request may ask for",
            param="n",
        )
    for prompt in body.prompt:
        if isinstance(prompt, str):
            require_short(engine, len(prompt), "prompt")
    special_tokens = body.add_special_tokens is not False
    prompts = [
        await run_tokenizer(_encode, engine.tokenizer, prompt, special_tokens)
        for prompt in body.prompt
    ]
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    requests = admit_sequences(
        call,
        engine.model,
        body,
        prompts,
        answer_id=answer_id,
        max_tokens=body.most_tokens,
        default_max_tokens=DEFAULT_MAX_TOKENS,
        logprobs=body.logprobs,
        param="prompt",
    )
    echoes = [_text(engine.tokenizer, p) if body.echo else "" for p in body.prompt]
    writer = CompletionWriter(
        answer_id=answer_id,
        target=call.target,
        tokenizer=engine.tokenizer,
        prompt_tokens=sum(map(len, prompts)),
        echoes=[echo for echo in echoes for _ in range(n)],
        include_usage=body.include_usage,
    )
    return GenerationResponse(services, call, requests, writer, stream=bool(body.stream))


def _encode(tokenizer: Tokenizer, prompt: str | list[int], special_tokens: bool) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    return tokenizer.encode(prompt, add_special_tokens=special_tokens)


def _text(tokenizer: Tokenizer, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


@dataclass(kw_only=True)
class CompletionWriter(ChoicesWriter):
    chunk_type = whole_type = Completion

    echoes: Sequence[str]
    """The prompt before each choice's text, or nothing."""
    offsets: dict[int, int] = field(default_factory=lambda: defaultdict(int), init=False)
    """By choice, where in its text the next token begins."""

    def opening(self) -> Iterable[Event]:
        for index, echo in enumerate(self.echoes):
            if echo:
                yield self._chunk(CompletionChoice(index=index, text=echo))

    def _choice_of_chunk(self, index: int, event: TokenEvent) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=event.text,
            logprobs=self._logprobs(index, event.logprobs),
            finish_reason=finished_by(event),
        )

    def _choice_of_whole(self, index: int, choice: Choice) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=self.echoes[index] + choice.text,
            logprobs=self._logprobs(index, choice.positions or None),
            finish_reason=choice.finished_by,
        )

    def _logprobs(
        self, index: int, positions: Sequence[PositionLogprobs] | None
    ) -> CompletionLogprobs | None:
        if positions is None:
            return None
        logprobs = CompletionLogprobs()
        for position in positions:
            token = self.tokenizer.token_text(position.chosen.token_id)
            top: dict[str, float] = {}
            # Different tokens may have the same text (halves of characters): the likelier stays.
            for entry in (*position.top, position.chosen):
                text = self.tokenizer.token_text(entry.token_id)
                top.setdefault(text, finite(entry.logprob))
            logprobs.tokens.append(token)
            logprobs.token_logprobs.append(finite(position.chosen.logprob))
            logprobs.top_logprobs.append(top)
            logprobs.text_offset.append(self.offsets[index])
            self.offsets[index] += len(token)
        return logprobs
