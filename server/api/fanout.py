"""The sequences of a request on the engine: their events merged into one stream, and what each of
them came to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from remix_runtime.contracts import (
    Engine,
    FinishReason,
    GenerationRequest,
    PositionLogprobs,
    TokenEvent,
)
from remix_runtime.errors import EngineBusyError
from remix_runtime.turn import Turn
from server.api.wire.answers import FinishedBy
from server.metrics import SequenceWatch


@dataclass(slots=True)
class Choice:
    """One sequence and what it has generated so far."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    positions: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[PositionLogprobs | None] | None = None
    cached_tokens: int | None = None
    """Of its prompt, in the engine's prefix cache; None where there is none."""
    finished_by: FinishedBy | None = None

    def add(self, event: TokenEvent, *, keeps_logprobs: bool = True) -> None:
        self.texts.append(event.text)
        self.token_ids.extend(event.token_ids)
        if event.cached_tokens is not None:
            self.cached_tokens = event.cached_tokens
        if keeps_logprobs:
            self.positions.extend(event.logprobs or ())
            if event.prompt_logprobs is not None:
                self.prompt_logprobs = event.prompt_logprobs
        self.finished_by = finished_by(event)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def cached_tokens(choices: Sequence[Choice], per_prompt: int) -> int | None:
    """Of all prompts: each counts once, however many choices it has. None without a cache."""
    of_prompts = [choice.cached_tokens for choice in choices[::per_prompt]]
    return None if None in of_prompts else sum(filter(None, of_prompts))


def finished_by(event: TokenEvent) -> FinishedBy | None:
    """OpenAI's finish reason of an event. Raises `EngineBusyError` for a request that the server
    itself ended."""
    match event.finish_reason:
        case None:
            return None
        case FinishReason.STOP:
            return "stop"
        case FinishReason.LENGTH:
            return "length"
        case FinishReason.ABORT:
            raise EngineBusyError("The server is shutting down.", retry_after=5)


class Fanout:
    """All sequences of one HTTP request on the engine at the same time.

    Leaving the context, for whatever reason, takes those that are not finished off the engine.
    """

    def __init__(
        self,
        engine: Engine,
        requests: Sequence[GenerationRequest],
        watches: Sequence[SequenceWatch],
        *,
        keeps_logprobs: bool,
    ) -> None:
        self.choices = [Choice() for _ in requests]
        self._watches = watches
        self._keeps_logprobs = keeps_logprobs
        self._sequences = [_events(engine, request) for request in requests]
        self._queue: asyncio.Queue[tuple[int, TokenEvent | Exception]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for watch in self._watches:
            watch.begin()
        if len(self._sequences) > 1:
            self._tasks = [
                asyncio.create_task(self._pump(index, events))
                for index, events in enumerate(self._sequences)
            ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for watch in self._watches:
            watch.end()
        # The last ones first: those that wait must not get the places of those that run.
        running = [task for task in reversed(self._tasks) if not task.done()]
        for task in running:
            task.cancel()  # inside the engine's iterator, which closes and aborts
        if running:
            await asyncio.wait(running)
        for events in self._sequences:
            await events.aclose()

    async def events(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """(choice, event) until every choice has finished. Raises the first failure of any.

        All sequences are handed over before the first token can come, so a refusal is the
        first thing that is seen.
        """
        merged = self._merged() if self._tasks else self._only()
        async for index, event in merged:
            self._watches[index].see(event)
            self.choices[index].add(event, keeps_logprobs=self._keeps_logprobs)
            yield index, event

    async def _only(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        """Of a single sequence: no task stands between the engine and who reads."""
        (events,) = self._sequences
        async for event in events:
            yield 0, event

    async def _merged(self) -> AsyncIterator[tuple[int, TokenEvent]]:
        unfinished = len(self._sequences)
        turn = Turn()
        while unfinished:
            index, item = await turn.take(self._queue)
            if isinstance(item, Exception):
                raise item
            unfinished -= item.finish_reason is not None
            yield index, item

    async def _pump(self, index: int, events: AsyncIterator[TokenEvent]) -> None:
        try:
            async for event in events:
                self._queue.put_nowait((index, event))
        except Exception as error:
            self._queue.put_nowait((index, error))


async def _events(engine: Engine, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
    """What the engine generates; where a tokenizer in Rust panics, an `Exception`."""
    try:
        async with aclosing(engine.generate(request)) as events:
            async for event in events:
                yield event
    except (Exception, asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        raise RuntimeError(repr(error)) from error
