"""Begins a chat, by whichever API it came: the prompt's tokens, the sequences, how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import Request

from remix_runtime.contracts import Engine, GenerationRequest
from remix_runtime.errors import InvalidRequestError
from server.api.calls import Call, open_call
from server.api.generation import admit_sequences
from server.api.parts import AnswerParser, PlainParser
from server.api.tokenizing import require_short, run_tokenizer
from server.api.wire.chat import ChatRequest
from server.services import services_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A chat that is admitted."""

    call: Call
    requests: Sequence[GenerationRequest]
    """One for each choice."""
    prompt_tokens: int
    make_parser: Callable[[], AnswerParser]
    """A fresh parser for the text of a choice."""


async def render_prompt(
    engine: Engine, body: ChatRequest, *, param: str = "messages"
) -> Sequence[int]:
    """The tokens of a chat's prompt. Raises `InvalidRequestError`, `EngineBusyError`."""
    require_short(engine, sum(len(m.content) for m in body.messages), param)
    messages = [message.for_template() for message in body.messages]
    return await run_tokenizer(engine.tokenizer.apply_chat_template, messages)


async def open_conversation(
    http: Request, body: ChatRequest, *, answer_id: str, param: str = "messages"
) -> Conversation:
    """Takes the request's place in the quota, pins its model, renders and admits it. Other APIs put
    what they were sent into a `ChatRequest`; `param`: the field in which messages came there.

    Raises `RateLimitedError`, `UnknownModelError`, `InvalidRequestError`, `EngineBusyError`.
    """
    services = services_of(http)
    call = open_call(http, body.model)
    engine, n = services.engine, body.choices_per_prompt
    if n > services.max_choices:
        raise InvalidRequestError(
            f"n: found {n}, expected at most {services.max_choices}", param="n"
        )
    prompt = await render_prompt(engine, body, param=param)
    requests = admit_sequences(
        call,
        engine.model,
        body,
        [prompt],
        answer_id=answer_id,
        max_tokens=body.most_tokens,
        default_max_tokens=services.settings.default_max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        param=param,
    )
    return Conversation(
        call=call, requests=requests, prompt_tokens=len(prompt), make_parser=PlainParser
    )
