"""Tokenizes in a thread, so that one long prompt does not stall the streams; short ones at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from remix_runtime.contracts import Engine
from remix_runtime.errors import EngineBusyError, InvalidRequestError

P = ParamSpec("P")
T = TypeVar("T")

MAX_PENDING = 256
"""The most texts that may wait for the tokenizer; one more is refused at once."""

# One thread: fast tokenizers must not be encoded with from two threads at once.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="remix-tokenizer")
_pending = 0


def longest_text(engine: Engine) -> int:
    """The most characters that could fit the context."""
    return engine.model.max_model_len * engine.tokenizer.max_token_chars


def require_short(engine: Engine, characters: int, param: str) -> None:
    """Raises `InvalidRequestError` for a text that cannot fit the context, whatever its tokens.

    Tokenizing megabytes takes seconds, and all others would wait for it.
    """
    context, longest = engine.model.max_model_len, engine.tokenizer.max_token_chars
    if characters > longest_text(engine):
        raise InvalidRequestError(
            f"This model's maximum context length is {context} tokens. However, your {param} of "
            f"{characters} characters cannot be less than {characters // longest} tokens. Please "
            f"reduce the length.",
            param=param,
            code="context_length_exceeded",
        )


async def run_short(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `function`, whose text is short, at once if the tokenizer's thread has nothing to do: to
    wake it, and the event loop again, takes longer. Raises as `run_tokenizer`."""
    return await run_tokenizer(function, *args, **kwargs) if _pending else function(*args, **kwargs)


async def run_tokenizer(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `function` in the tokenizer's thread. Raises `EngineBusyError` when too many wait."""
    global _pending
    if _pending >= MAX_PENDING:
        raise EngineBusyError(f"the queue is full ({MAX_PENDING} texts wait for the tokenizer)")
    _pending += 1
    try:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(_thread, lambda: function(*args, **kwargs))
    finally:
        _pending -= 1
