"""The answer of a generation: server-sent events or one JSON document.

What the engine holds of a request is held by the `with` blocks below `GenerationResponse.__call__`,
so it is given back whatever the end is: done, failed, disconnected, cancelled. The request's place
in the quota and its pin are its state's (`server/http/request.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

from remix_runtime.contracts import TokenEvent
from remix_runtime.errors import AdapterUnavailableError
from server.api.event_stream import EventStream
from server.api.fanout import Fanout, cached_tokens
from server.api.generation import Admitted
from server.api.writer import Writer, encode
from server.http.errors import ApiError, as_api_error
from server.http.request import CLIENT_GONE, Generation, RequestState, label_error, state_of
from server.http.slices import in_slices
from server.metrics import SequenceWatch
from server.services import Services

T = TypeVar("T")

_MOST_PARTS = 4096
"""Tokens and log-probabilities of an answer that is written at once: milliseconds."""


class GenerationResponse(Response):
    """Runs the sequences of an admitted request on the engine and sends what they generate."""

    def __init__(
        self, services: Services, admitted: Admitted, writer: Writer, *, stream: bool
    ) -> None:
        super().__init__()
        self._services = services
        self._admitted = admitted
        self._call = admitted.call
        self._writer = writer
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._generate(scope, receive, send)
        except Exception as error:
            raise self._as_api_error(error) from error

    def _as_api_error(self, error: Exception) -> ApiError:
        api_error = as_api_error(error)
        api_error.param = self._admitted.fields.get(api_error.param or "", api_error.param)
        return api_error

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stream:
            answer = self._send_stream(scope, send)
        else:
            answer = self._send_whole(scope, receive, send)
        answered = await until_disconnect(receive, answer)
        if not answered:
            label_error(scope, CLIENT_GONE)

    @asynccontextmanager
    async def _sequences(self, state: RequestState) -> AsyncIterator[Fanout]:
        """The sequences on the engine, their adapter at hand. Tells what they took."""
        digest, has_failed = self._call.target.digest, False
        generation = state.generation = Generation(
            params=self._admitted.requests[0].params,
            choices=self._admitted.choices_per_prompt,
            stream=self._stream,
            is_chat=self._writer.is_chat,
        )
        try:
            if digest is not None:
                await self._load(digest, state, generation)
            watches = self._watches()
            generation.handed_seconds = state.seconds
            async with Fanout(
                self._services.engine,
                self._admitted.requests,
                watches,
                keeps_logprobs=not self._stream,
            ) as fanout:
                try:
                    yield fanout
                except AdapterUnavailableError:  # the engine's own: others are no news of it
                    if digest is not None:
                        self._services.adapters.unreadable(digest)
                    raise
                finally:
                    state.generated_tokens = sum(choice.num_tokens for choice in fanout.choices)
                    waited = [watch.queue_seconds for watch in watches]
                    state.queue_seconds = min((s for s in waited if s is not None), default=None)
                    generation.cached_tokens = cached_tokens(fanout.choices, generation.choices)
                    ended = (choice.finished_by for choice in fanout.choices)
                    generation.finish_reasons = tuple(filter(None, ended))
        except Exception:
            has_failed = True
            raise
        finally:
            generation.ended_seconds = state.seconds
            state.prompt_tokens = self._admitted.prompt_tokens
            # What the engine has scheduled, for those too who left before they saw any of it.
            used = sum(request.meter.tokens for request in self._admitted.requests)
            if has_failed and self._call.has_fallback:
                # Another adapter answers, and that is what the tenant pays.
                self._call.admission.keep_reserved(used)
            else:
                self._call.admission.settle(used)

    async def _load(self, digest: str, state: RequestState, generation: Generation) -> None:
        began = state.seconds
        try:
            await self._services.adapters.load_for_request(digest, self._call.tenant)
        finally:
            generation.load_seconds = began, state.seconds

    def _is_long(self, fanout: Fanout) -> bool:
        """Whether the whole answer takes too long to write in a turn of the event loop."""
        parts = 0
        for request, choice in zip(self._admitted.requests, fanout.choices, strict=True):
            params, prompt = request.params, len(request.prompt_token_ids)
            parts += choice.num_tokens * (2 + (params.logprobs or 0))
            parts += (
                prompt // 16
                if params.prompt_logprobs is None
                else prompt * (1 + params.prompt_logprobs)
            )
        return parts > _MOST_PARTS

    async def _work(self, function: Callable[[], T]) -> T:
        """Writes what is long in a thread."""
        return await self._services.worker.run(self._call.tenant, function)

    def _watches(self) -> list[SequenceWatch]:
        # A prompt counts once, with its first choice.
        n = self._admitted.choices_per_prompt
        tenant, name = self._call.tenant, self._call.target.name
        return [
            self._services.metrics.watch(
                tenant, name, prompt_tokens=0 if index % n else len(request.prompt_token_ids)
            )
            for index, request in enumerate(self._admitted.requests)
        ]

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        async with self._sequences(state) as fanout:
            async for _, event in fanout.events():
                self._see(state, event)

            def whole() -> bytes:
                return self._writer.whole(fanout.choices).encode()

            response = Response(
                await self._work(whole) if self._is_long(fanout) else whole(),
                media_type="application/json",
                headers=self._call.admission.headers,
            )
            await response(scope, receive, in_slices(send))

    async def _send_stream(self, scope: Scope, send: Send) -> None:
        state, opened, last = state_of(scope), False, b""
        silence = self._services.settings.keep_alive_seconds
        has_started = state.status is not None  # a comment of an attempt that failed
        async with EventStream(
            send, self._call.admission, silence, has_started=has_started
        ) as stream:
            try:
                async with self._sequences(state) as fanout:
                    async for index, event in fanout.events():
                        self._see(state, event)
                        if not opened:
                            # Only now: what the engine refuses at once is still an HTTP error.
                            await stream.write(self._writer.opening(event))
                            opened = True
                        chunks = self._writer.chunks(index, event)
                        if event.prompt_logprobs is None:
                            await stream.write(chunks)
                        else:
                            await stream.write_bytes(await self._work(partial(encode, chunks)))
                    written = partial(encode, self._writer.closing(fanout.choices))
                    last = await self._work(written) if self._is_long(fanout) else written()
            except Exception as error:
                if not await stream.has_started():
                    raise
                if self._call.has_fallback and not opened:
                    state.end_stream = partial(self._end_stream, scope, send)
                    raise
                last = self._failed(error, scope)
            await stream.end(last)

    async def _end_stream(self, scope: Scope, send: Send, error: Exception) -> None:
        async with EventStream(send, self._call.admission, 0, has_started=True) as stream:
            await stream.end(self._failed(error, scope))

    def _failed(self, error: Exception, scope: Scope) -> bytes:
        """The events that tell of it."""
        api_error = self._as_api_error(error)
        label_error(scope, api_error.label)
        return encode(self._writer.failed(api_error))

    def _see(self, state: RequestState, event: TokenEvent) -> None:
        if state.first_token_seconds is None and event.token_ids:
            state.first_token_seconds = state.seconds
        if self._call.trial is not None:
            self._call.trial.see(len(event.token_ids))


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Awaits `work`, or cancels it when the client goes away first. Returns whether it was done."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        limit.reschedule(0.0)  # which has passed: the work is cancelled

    try:
        async with asyncio.timeout(None) as limit:
            watching = asyncio.ensure_future(watch())
            try:
                await work
            finally:
                watching.cancel()
    except TimeoutError:
        if not limit.expired():
            raise
        return False
    return True
