"""Tokenizes in a thread, so that one long prompt does not stall the streams, in turns between
tenants, and no further than what fits the context and the tenant's quota. Short ones at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from remix_runtime.contracts import Engine
from remix_runtime.errors import InvalidRequestError
from server.http.request import RequestState
from server.services import Services

P = ParamSpec("P")
T = TypeVar("T")

COUNTED_CONTEXTS = 2
"""Prompts that are only counted may be longer than the context, so that clients learn by how much;
so many contexts at most."""


def least_tokens(engine: Engine, characters: int) -> int:
    """The fewest tokens that a text can have."""
    return -(-characters // engine.tokenizer.max_token_chars)


def require_short(engine: Engine, characters: int, param: str) -> int:
    """Returns the fewest tokens that a text can have. Raises `InvalidRequestError` where they do
    not fit the context: tokenizing megabytes takes seconds."""
    context, least = engine.model.max_model_len, least_tokens(engine, characters)
    if least > context:
        raise InvalidRequestError(
            f"This model's maximum context length is {context} tokens. However, your {param} of "
            f"{characters} characters cannot be less than {least} tokens. Please reduce the "
            f"length.",
            param=param,
            code="context_length_exceeded",
        )
    return least


async def run_tokenizer(
    services: Services, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Runs `function` in the tokenizer's thread when it is the tenant's turn. Raises
    `EngineBusyError` when too many of its texts wait."""
    return await services.tokenizing.run(tenant, partial(function, *args, **kwargs))


async def run_short(
    services: Services, tenant: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Runs `function`, whose text is short, at once if the tokenizer's thread has nothing to do: to
    wake it, and the event loop again, takes longer. Raises as `run_tokenizer`."""
    if services.tokenizing.is_idle:
        return function(*args, **kwargs)
    return await run_tokenizer(services, tenant, function, *args, **kwargs)


async def count_tokens(
    services: Services,
    state: RequestState,
    characters: int,
    tokenize: Callable[[int], list[int]],
    param: str,
) -> list[int]:
    """The tokens of a prompt that nothing is generated from. `tokenize` gets the most tokens that
    are wanted. Raises `InvalidRequestError`, `RateLimitedError`, `EngineBusyError`."""
    engine, admission = services.engine, state.admission
    assert admission is not None, "the route is no CountedRoute"
    least = require_short(engine, characters, param)
    await admission.obtain_tokenizing(least)
    at_most = COUNTED_CONTEXTS * engine.model.max_model_len
    ids = await run_tokenizer(services, state.tenant, tokenize, at_most)
    admission.tokenized(len(ids))
    if len(ids) > at_most:
        raise InvalidRequestError(
            f"This model's maximum context length is {engine.model.max_model_len} tokens. However, "
            f"your {param} has more than {at_most} tokens. Please reduce the length.",
            param=param,
            code="context_length_exceeded",
        )
    return ids
