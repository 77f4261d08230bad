"""Begins a chat, by whichever API it came: the prompt's tokens, the sequences, how to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from remix_runtime.contracts import GenerationRequest
from remix_runtime.errors import InvalidRequestError
from server.api.calls import Call
from server.api.defaults import with_defaults
from server.api.generation import (
    Admitted,
    AnswerLength,
    admit_sequences,
    keeps_end,
    reserve_least,
)
from server.api.parts import AnswerParser
from server.api.tokenizing import count_tokens, require_short, run_short, run_tokenizer
from server.api.tools.prepare import PreparedChat, prepare_chat, render_prompt
from server.api.wire.chat import ChatPrompt, ChatRequest
from server.http.request import RequestState
from server.services import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation(Admitted):
    """A chat that is admitted."""

    make_parser: Callable[[], AnswerParser]
    """A fresh parser for the text of a choice."""


async def prompt_of(
    services: Services,
    state: RequestState,
    body: ChatPrompt,
    template: str | None,
    *,
    param: str = "messages",
) -> list[int]:
    """The tokens of a chat's prompt, to be counted; `template`: the adapter's own. Raises
    `InvalidRequestError`, `RateLimitedError`, `EngineBusyError`."""
    tokenizer, setting = services.engine.tokenizer, services.settings.tool_parser

    def render(at_most: int) -> list[int]:
        return render_prompt(tokenizer, body, setting, template, at_most=at_most)

    return await count_tokens(services, state, body.num_characters, render, param)


async def open_conversation(
    services: Services, call: Call, body: ChatRequest, *, answer_id: str, param: str = "messages"
) -> Conversation:
    """Renders a chat and admits it. Other APIs put what they were sent into a `ChatRequest`;
    `param`: the field in which messages came there.

    Raises `RateLimitedError`, `InvalidRequestError`, `EngineBusyError`.
    """
    body = with_defaults(body, call.defaults)
    engine, n = services.engine, body.choices_per_prompt
    if n > services.max_choices:
        raise InvalidRequestError(
            f"n: found {n}, expected at most {services.max_choices}", param="n"
        )
    await call.admission.obtain_places(n)
    await reserve_least(
        call, body, engine.model, [require_short(engine, body.num_characters, param)]
    )
    template = call.defaults.chat_template
    # An adapter's own template is a program of its tenant.
    tokenize = run_short if call.is_short and template is None else run_tokenizer
    chat = await tokenize(
        services,
        call.tenant,
        prepare_chat,
        engine.tokenizer,
        body,
        services.settings.tool_parser,
        template,
        at_most=engine.model.max_model_len,
        keep_end=keeps_end(body),
    )
    call.admission.tokenized(len(chat.prompt))
    admitted = await admit_sequences(
        call,
        engine.model,
        body,
        [chat.prompt],
        answer_id=answer_id,
        length=AnswerLength.of(body, call, services.settings, services.settings.default_max_tokens),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        param=param,
    )
    return Conversation(
        call=call,
        requests=[_as_prepared(request, chat) for request in admitted.requests],
        choices_per_prompt=admitted.choices_per_prompt,
        # Without a structure of its own the request's tools ask for the grammar.
        fields=admitted.fields or {"response_format": "tools"},
        make_parser=chat.make_parser,
    )


def _as_prepared(request: GenerationRequest, chat: PreparedChat) -> GenerationRequest:
    if chat.grammar is request.params.grammar and not chat.keeps_special_tokens:
        return request
    skips = request.params.skip_special_tokens and not chat.keeps_special_tokens
    params = replace(request.params, grammar=chat.grammar, skip_special_tokens=skips)
    return replace(request, params=params)
