"""Tokenizing away from the event loop, so that one long prompt does not stall the streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# One thread: fast tokenizers must not be encoded with from two threads at once.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="remix-tokenizer")


async def run_tokenizer(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_thread, lambda: function(*args, **kwargs))
