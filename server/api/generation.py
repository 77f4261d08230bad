"""Turns a validated body into sequences for the engine, and reserves their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from remix_runtime.contracts import (
    GenerationRequest,
    ModelInfo,
    SamplingParams,
)
from remix_runtime.errors import InvalidRequestError
from server.api.calls import Call
from server.api.wire.generation import GenerationBody
from server.settings import ServerSettings

MAX_LOGPROB_ENTRIES = 1 << 19
"""Of all log-probabilities of a request: so many are held in memory until the answer is sent."""

MAX_ALLOWED_OF_ALL = 1 << 19
"""Allowed tokens of all sequences of a request, each of which has its own check of them."""


def _sampling_params(
    body: GenerationBody,
    *,
    max_tokens: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> SamplingParams:
    """The engine's parameters for the first choice of a prompt."""
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),  # vLLM's -1 means the same as 0
        min_p=body.min_p or 0.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=body.repetition_penalty or 1.0,
        seed=body.seed,
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        include_stop_str_in_output=bool(body.include_stop_str_in_output),
        ignore_eos=bool(body.ignore_eos),
        skip_special_tokens=body.skip_special_tokens is not False,
        logit_bias=body.logit_bias,
        allowed_token_ids=tuple(body.allowed_token_ids or ()),
        bad_words=tuple(body.bad_words or ()),
        grammar=body.grammar,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
    )


def _for_choice(params: SamplingParams, choice: int) -> SamplingParams:
    if params.seed is None or choice == 0:
        return params
    return replace(params, seed=choice_seed(params.seed, choice))


def choice_seed(seed: int, choice: int) -> int:
    """The first choice keeps the client's seed; the others get unrelated ones."""
    if choice == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{choice}".encode()).digest()[:7], "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A request whose tokens are reserved in its tenant's quota."""

    call: Call
    requests: Sequence[GenerationRequest]
    """One for each choice, those of a prompt side by side."""
    choices_per_prompt: int
    fields: Mapping[str, str]
    """The client's names for fields that the engine calls otherwise."""

    @property
    def prompt_tokens(self) -> int:
        """Of all prompts: each counts once, however many choices it has, but in the quota."""
        return sum(len(r.prompt_token_ids) for r in self.requests[:: self.choices_per_prompt])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLength:
    """How many tokens an answer may have."""

    asked: int | None
    default: int
    """Where the request does not say, cut to what the context leaves."""
    is_cut: bool
    """Whether more tokens than the context leaves are cut too, or refused."""

    @property
    def least(self) -> int:
        """Tokens that must have room behind a prompt."""
        if self.asked is None:
            return 1
        return min(self.asked, 1) if self.is_cut else self.asked

    @classmethod
    def of(
        cls, body: GenerationBody, call: Call, settings: ServerSettings, default: int
    ) -> AnswerLength:
        """`default`: of a request and an adapter that do not say."""
        return cls(
            asked=body.most_tokens,
            default=call.defaults.max_tokens or default,
            is_cut=settings.long_max_tokens == "cut",
        )

    def within(self, room: int) -> int:
        """The most tokens, of so many that there is room for."""
        return min(self.default if self.asked is None else self.asked, room)


async def admit_sequences(
    call: Call,
    model: ModelInfo,
    body: GenerationBody,
    prompts: Sequence[Sequence[int]],
    *,
    answer_id: str,
    length: AnswerLength,
    logprobs: int | None,
    prompt_logprobs: int | None = None,
    param: str,
) -> Admitted:
    """`n` sequences for each prompt, with their tokens reserved in the tenant's quota.

    A prompt is cut where the body says so. Raises `InvalidRequestError`, `RateLimitedError`.
    """
    requests: list[GenerationRequest] = []
    for whole in prompts:
        prompt = fitting(whole, model, body, length, param=param)
        most = length.within(model.max_model_len - len(prompt))
        if (least := body.min_tokens or 0) > most:
            raise InvalidRequestError(
                f"min_tokens: found {least}, more than the {most} tokens that may be generated",
                param="min_tokens",
            )
        # Choices differ in their seed alone, and share the rest: it may be large.
        prompt_token_ids = tuple(prompt)
        params = _sampling_params(
            body, max_tokens=most, logprobs=logprobs, prompt_logprobs=prompt_logprobs
        )
        for choice in range(body.choices_per_prompt):
            requests.append(
                GenerationRequest(
                    request_id=f"{answer_id}-{len(requests)}",
                    prompt_token_ids=prompt_token_ids,
                    params=_for_choice(params, choice),
                    digest=call.target.digest,
                    tenant=call.tenant,
                    cache_salt=body.cache_salt or "",
                )
            )
    allowed = len(body.allowed_token_ids or ()) * len(requests)
    if allowed > MAX_ALLOWED_OF_ALL:
        raise InvalidRequestError(
            f"allowed_token_ids: found {allowed} in {len(requests)} sequences, expected at most "
            f"{MAX_ALLOWED_OF_ALL}",
            param="allowed_token_ids",
        )
    if (told := sum(map(_told_logprobs, requests))) > MAX_LOGPROB_ENTRIES:
        raise InvalidRequestError(
            f"the answer could have {told} log-probabilities, of all tokens together, expected at "
            f"most {MAX_LOGPROB_ENTRIES}; ask for fewer of them, or for shorter or fewer answers",
            param="logprobs",
        )
    # All copies of a prompt: each is computed.
    await call.admission.obtain_tokens(
        sum(len(request.prompt_token_ids) + request.params.max_tokens for request in requests)
    )
    return Admitted(
        call=call,
        requests=requests,
        choices_per_prompt=body.choices_per_prompt,
        fields=body.engine_fields,
    )


async def reserve_least(
    call: Call, body: GenerationBody, model: ModelInfo, least: Sequence[int]
) -> None:
    """Reserves what prompts take that have so many tokens at least, before they are tokenized, if
    the quota has what their copies and answers take too. Raises `RateLimitedError`."""
    most, asked, context = body.truncate_prompt_tokens, body.most_tokens or 0, model.max_model_len
    cut = [count if most is None else min(count, max(most, 1)) for count in least]
    # An answer that is longer than its room may be cut, and a longer prompt leaves it less.
    answers = body.choices_per_prompt * sum(min(asked, max(context - count, 0)) for count in cut)
    copies = (body.choices_per_prompt - 1) * sum(cut)
    await call.admission.obtain_tokens(sum(cut), later=copies + answers)


def fitting(
    prompt: Sequence[int],
    model: ModelInfo,
    body: GenerationBody,
    length: AnswerLength,
    *,
    param: str,
) -> Sequence[int]:
    """The prompt, or what the body says is left of it. Raises `InvalidRequestError` where it does
    not fit the context."""
    prompt = _cut(prompt, body, _longest_prompt(body, model, length))
    model.require_room(len(prompt), length.least, param=param)
    return prompt


def keeps_end(body: GenerationBody) -> bool:
    """Whether the end of a long prompt is wanted and not its start."""
    return body.truncate_prompt_tokens is not None and body.truncation_side != "right"


def _told_logprobs(request: GenerationRequest) -> int:
    """The most log-probabilities that a sequence's answer may have."""
    params, told = request.params, 0
    if params.logprobs is not None:
        told += params.max_tokens * (1 + params.logprobs)
    if params.prompt_logprobs is not None:
        told += len(request.prompt_token_ids) * (1 + params.prompt_logprobs)
    return told


def _longest_prompt(body: GenerationBody, model: ModelInfo, length: AnswerLength) -> int | None:
    """How many tokens `truncate_prompt_tokens` leaves of a prompt."""
    if body.truncate_prompt_tokens != -1:
        return body.truncate_prompt_tokens
    context = model.max_model_len
    if length.asked is None or length.is_cut:  # more than half would leave little of the prompt
        return context - length.within(context // 2)
    return max(1, context - length.asked)


def _cut(prompt: Sequence[int], body: GenerationBody, longest: int | None) -> Sequence[int]:
    if longest is None or longest >= len(prompt):
        return prompt
    return prompt[:longest] if body.truncation_side == "right" else prompt[-longest:]
