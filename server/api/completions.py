"""`POST /v1/completions`."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import GenerationRequest, PositionLogprobs, TokenEvent, Tokenizer
from remix_runtime.errors import InvalidRequestError
from server.api.calls import open_call
from server.api.documentation import generation_responses
from server.api.generation import Choice, finished_by, sampling_params, tokens_to_generate
from server.api.streaming import GenerationResponse
from server.api.tokenizing import require_short, run_tokenizer
from server.api.wire.answers import Completion, CompletionChoice, CompletionLogprobs, Usage
from server.api.wire.requests import CompletionRequest
from server.http.body import StrictRoute
from server.live.sets import Target
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
    requests: list[GenerationRequest] = []
    for prompt in prompts:
        max_tokens = tokens_to_generate(
            asked=body.max_tokens,
            default=DEFAULT_MAX_TOKENS,
            prompt_tokens=len(prompt),
            context=engine.model.max_model_len,
            param="prompt",
        )
        for choice in range(n):
            params = sampling_params(
                body, max_tokens=max_tokens, logprobs=body.logprobs, choice=choice
            )
            requests.append(
                GenerationRequest(
                    request_id=f"{answer_id}-{len(requests)}",
                    prompt_token_ids=tuple(prompt),
                    params=params,
                    digest=call.target.digest,
                    tenant=call.tenant,
                )
            )
    call.admission.reserve_tokens(
        sum(map(len, prompts)) + sum(request.params.max_tokens for request in requests)
    )
    echoes = [_text(engine.tokenizer, p) if body.echo else "" for p in body.prompt]
    writer = CompletionWriter(
        answer_id,
        call.target,
        engine.tokenizer,
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


class CompletionWriter:
    """The wire form of one completion, whole or in chunks."""

    def __init__(
        self,
        answer_id: str,
        target: Target,
        tokenizer: Tokenizer,
        *,
        prompt_tokens: int,
        echoes: Sequence[str],
        include_usage: bool,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._id = answer_id
        self._target = target
        self._tokenizer = tokenizer
        self._echoes = echoes
        self._include_usage = include_usage
        self._created = int(time.time())
        self._offsets = [0] * len(echoes)

    def opening(self) -> Iterable[str]:
        for index, echo in enumerate(self._echoes):
            if echo:
                yield self._chunk(CompletionChoice(index=index, text=echo))

    def chunks(self, index: int, event: TokenEvent) -> Iterable[str]:
        if event.text or event.logprobs or event.finish_reason:
            choice = CompletionChoice(
                index=index,
                text=event.text,
                logprobs=self._logprobs(index, event.logprobs),
                finish_reason=finished_by(event),
            )
            yield self._chunk(choice)

    def closing(self, choices: Sequence[Choice]) -> Iterable[str]:
        if self._include_usage:
            yield self._document([], self._usage(choices)).model_dump_json()

    def whole(self, choices: Sequence[Choice]) -> str:
        answers = [
            CompletionChoice(
                index=index,
                text=self._echoes[index] + choice.text,
                logprobs=self._logprobs(index, choice.positions or None),
                finish_reason=choice.finished_by,
            )
            for index, choice in enumerate(choices)
        ]
        return self._document(answers, self._usage(choices)).model_dump_json()

    def _chunk(self, choice: CompletionChoice) -> str:
        # OpenAI's streams have `usage: null` in every chunk only if usage was asked for.
        left_out = None if self._include_usage else {"usage"}
        return self._document([choice], None).model_dump_json(exclude=left_out)

    def _document(self, choices: list[CompletionChoice], usage: Usage | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._target.name,
            system_fingerprint=self._target.fingerprint,
            choices=choices,
            usage=usage,
        )

    def _usage(self, choices: Sequence[Choice]) -> Usage:
        return Usage.of(self.prompt_tokens, sum(choice.num_tokens for choice in choices))

    def _logprobs(
        self, index: int, positions: Sequence[PositionLogprobs] | None
    ) -> CompletionLogprobs | None:
        if positions is None:
            return None
        logprobs = CompletionLogprobs()
        for position in positions:
            token = self._tokenizer.token_text(position.chosen.token_id)
            top: dict[str, float] = {}
            # Different tokens may have the same text (halves of characters): the likelier stays.
            for entry in (*position.top, position.chosen):
                text = self._tokenizer.token_text(entry.token_id)
                top.setdefault(text, finite(entry.logprob))
            logprobs.tokens.append(token)
            logprobs.token_logprobs.append(finite(position.chosen.logprob))
            logprobs.top_logprobs.append(top)
            logprobs.text_offset.append(self._offsets[index])
            self._offsets[index] += len(token)
        return logprobs


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for a token that cannot come."""
    return max(logprob, -9999.0)
