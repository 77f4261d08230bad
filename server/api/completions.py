"""`POST /v1/completions`."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response

from remix_runtime.contracts import (
    Engine,
    GenerationRequest,
    PositionLogprobs,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.errors import InvalidRequestError, RemixError
from server.api.arms import answered
from server.api.calls import Call, CountedRoute
from server.api.defaults import with_defaults
from server.api.documentation import generation_responses
from server.api.fanout import Choice, finished_by
from server.api.generation import AnswerLength, admit_sequences, fitting, keeps_end, reserve_least
from server.api.logprobs import completion_logprobs, echoed_logprobs, joined
from server.api.streaming import GenerationResponse
from server.api.token_texts import Placed, place_prompt
from server.api.tokenizing import least_tokens, require_short, run_short, run_tokenizer
from server.api.wire.answers import Completion, CompletionChoice, CompletionLogprobs
from server.api.wire.completions import CompletionRequest
from server.api.writer import ChoicesWriter, Event
from server.services import Services, services_of

router = APIRouter(route_class=CountedRoute)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for this endpoint."""


@router.post("/v1/completions", responses=generation_responses(Completion))
async def create_completion(body: CompletionRequest, http: Request) -> Response:
    """Completes each prompt; OpenAI's API with vLLM's extra sampling parameters."""
    services = services_of(http)

    async def answer(call: Call) -> Response:
        return await _completed(services, call, with_defaults(body, call.defaults))

    return await answered(http, body.model, body.conversation, answer)


async def _completed(services: Services, call: Call, body: CompletionRequest) -> Response:
    """Raises `InvalidRequestError`, `RateLimitedError`, `EngineBusyError`."""
    engine, n = services.engine, body.choices_per_prompt
    if len(body.prompt) * n > services.max_choices:
        raise InvalidRequestError(
            f"{len(body.prompt)} prompts times n = {n} is more than the "
            f"{services.max_choices} sequences that one request may ask for",
            param="n",
        )
    await call.admission.obtain_places(len(body.prompt) * n)
    length = AnswerLength.of(body, call, services.settings, DEFAULT_MAX_TOKENS)
    prompts = await _tokenized(services, call, body, length)
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    admitted = await admit_sequences(
        call,
        engine.model,
        body,
        prompts,
        answer_id=answer_id,
        length=length,
        logprobs=body.logprobs,
        prompt_logprobs=body.most_prompt_logprobs,
        param="prompt",
    )
    echoes = [""] * len(admitted.requests)
    if body.echo:
        echoes = await run_tokenizer(
            services, call.tenant, _echoes, engine.tokenizer, body, prompts, admitted.requests
        )
    writer = CompletionWriter(
        answer_id=body.request_id or answer_id,
        target=call.target,
        tokenizer=engine.tokenizer,
        prompt_tokens=admitted.prompt_tokens,
        body=body,
        requests=admitted.requests,
        echoes=echoes,
    )
    return GenerationResponse(services, admitted, writer, stream=bool(body.stream))


async def _tokenized(
    services: Services, call: Call, body: CompletionRequest, length: AnswerLength
) -> list[list[int]]:
    """The tokens of all prompts; of none, where one cannot fit. Raises `InvalidRequestError`,
    `RateLimitedError`, `EngineBusyError`."""
    engine = services.engine
    least = [_least_tokens(engine, body, prompt) for prompt in body.prompt]
    await reserve_least(call, body, engine.model, least)
    tokenize = run_short if call.is_short else run_tokenizer
    prompts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            ids = await tokenize(
                services,
                call.tenant,
                engine.tokenizer.encode,
                prompt,
                add_special_tokens=body.add_special_tokens is not False,
                at_most=engine.model.max_model_len,
                keep_end=keeps_end(body),
            )
            call.admission.tokenized(len(ids))
        else:
            ids = prompt
        # Before the next one is tokenized.
        fitting(ids, engine.model, body, length, param="prompt")
        prompts.append(ids)
    return prompts


def _least_tokens(engine: Engine, body: CompletionRequest, prompt: str | list[int]) -> int:
    """The fewest tokens of a prompt. Raises `InvalidRequestError` where they do not fit the
    context, or one is unknown."""
    if isinstance(prompt, list):
        engine.model.require_known(prompt, param="prompt")
        return len(prompt)
    if body.truncate_prompt_tokens is None:
        return require_short(engine, len(prompt), "prompt")
    return least_tokens(engine, len(prompt))


def _echoes(
    tokenizer: Tokenizer,
    body: CompletionRequest,
    prompts: Sequence[list[int]],
    requests: Sequence[GenerationRequest],
) -> list[str]:
    """The prompt before each choice's text."""
    n = body.choices_per_prompt
    echoes: list[str] = []
    for prompt, whole, request in zip(body.prompt, prompts, requests[::n], strict=True):
        ids = request.prompt_token_ids
        if isinstance(prompt, str) and len(ids) == len(whole):
            echo = prompt
        else:
            echo = tokenizer.decode(ids, skip_special_tokens=False)
        echoes += [echo] * n
    return echoes


@dataclass(kw_only=True)
class CompletionWriter(ChoicesWriter):
    is_chat = False
    chunk_type = whole_type = Completion

    body: CompletionRequest
    echoes: Sequence[str]
    """The prompt before each choice's text, or nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._begun: set[int] = set()

    def _start(self, index: int) -> int:
        return len(self.echoes[index])

    def opening(self, first: TokenEvent) -> Iterable[Event]:
        return ()

    def chunks(self, index: int, event: TokenEvent) -> Iterable[Event]:
        if index not in self._begun:
            self._begun.add(index)
            ids = self._prompt_token_ids(index)
            if self.body.echo or ids is not None:
                yield self._chunk(
                    CompletionChoice(
                        index=index,
                        text=self.echoes[index],
                        logprobs=self._echoed(index, event.prompt_logprobs),
                        prompt_token_ids=ids,
                    )
                )
        yield from super().chunks(index, event)

    def _choice_of_chunk(
        self, index: int, event: TokenEvent, placed: Sequence[Placed]
    ) -> CompletionChoice | None:
        choice = CompletionChoice(
            index=index,
            text=event.text,
            logprobs=completion_logprobs(self._texts, placed) if placed else None,
            finish_reason=finished_by(event),
            token_ids=self._token_ids(event),
        )
        return choice if choice.text or choice.finish_reason or choice.token_ids else None

    def _choice_of_whole(self, index: int, choice: Choice) -> CompletionChoice:
        logprobs = self._echoed(index, choice.prompt_logprobs)
        if self.body.logprobs is not None:
            placed = self._placement(index).push(choice.text, choice.positions, ended=True)
            generated = completion_logprobs(self._texts, placed)
            logprobs = joined(logprobs, generated) if logprobs else generated
        return CompletionChoice(
            index=index,
            text=self.echoes[index] + choice.text,
            logprobs=logprobs,
            finish_reason=choice.finished_by,
            prompt_logprobs=self._prompt_logprobs(choice),
            prompt_token_ids=self._prompt_token_ids(index),
            token_ids=self._token_ids(choice),
        )

    def _echoed(
        self, index: int, positions: Sequence[PositionLogprobs | None] | None
    ) -> CompletionLogprobs | None:
        """Log-probabilities of an echoed prompt, where they were asked for."""
        if not self.body.echo or self.body.logprobs is None:
            return None
        if positions is None:
            raise RemixError("the engine gave no log-probabilities of the prompt")
        ids = self.requests[index].prompt_token_ids
        placed = place_prompt(self._texts, ids, self.echoes[index])
        return echoed_logprobs(self._texts, placed, positions, self.body.logprobs)
