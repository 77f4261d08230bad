"""The answer of a generation: server-sent events or one JSON document.

Everything a request holds is held by the `with` blocks of `GenerationResponse.__call__`, so it
is given back whatever the end is: done, failed, disconnected, cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from remix_runtime.contracts import GenerationRequest
from server.api.calls import Call
from server.api.generation import Fanout
from server.api.writer import Event, Writer
from server.http.errors import as_api_error
from server.http.request import label_error
from server.metrics import SequenceWatch
from server.services import Services

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class GenerationResponse(Response):
    """Runs `requests` on the engine and sends what they generate."""

    def __init__(
        self,
        services: Services,
        call: Call,
        requests: Sequence[GenerationRequest],
        writer: Writer,
        *,
        stream: bool,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """`fields`: the client's names for fields that the engine calls otherwise."""
        super().__init__()
        self._services = services
        self._call = call
        self._requests = requests
        self._writer = writer
        self._stream = stream
        self._fields = fields or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._generate(scope, receive, send)
        except Exception as error:
            api_error = as_api_error(error)
            api_error.param = self._fields.get(api_error.param or "", api_error.param)
            raise api_error from error

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._services.gate.enter():
            answered = await until_disconnect(receive, self._answer(scope, receive, send))
            if not answered:
                label_error(scope, "client_disconnected")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        used = 0
        try:
            target = self._call.target
            if target.digest is not None:
                await self._services.adapters.load_for_request(target.digest)
            async with Fanout(self._services.engine, self._requests, self._watches()) as fanout:
                try:
                    if self._stream:
                        await self._send_stream(fanout, scope, send)
                    else:
                        await self._send_whole(fanout, scope, receive, send)
                finally:
                    # What was refused costs no tokens; the engine says something of the rest.
                    if any(choice.texts for choice in fanout.choices):
                        used = self._writer.prompt_tokens
                        used += sum(choice.num_tokens for choice in fanout.choices)
        finally:
            self._call.admission.settle(used)

    def _watches(self) -> list[SequenceWatch]:
        # All sequences are admitted or none: the first one stands for the prompts of all.
        prompt_tokens = [self._writer.prompt_tokens] + [0] * (len(self._requests) - 1)
        tenant, name = self._call.tenant, self._call.target.name
        metrics = self._services.metrics
        return [metrics.watch(tenant, name, prompt_tokens=tokens) for tokens in prompt_tokens]

    async def _send_whole(self, fanout: Fanout, scope: Scope, receive: Receive, send: Send) -> None:
        async for _ in fanout.events():
            pass
        response = Response(
            self._writer.whole(fanout.choices),
            media_type="application/json",
            headers=self._call.admission.headers,
        )
        await response(scope, receive, send)

    async def _send_stream(self, fanout: Fanout, scope: Scope, send: Send) -> None:
        started = False
        try:
            async for index, event in fanout.events():
                if not started:
                    # Only now: what the engine refuses is still an HTTP error of its own.
                    start = {"type": "http.response.start", "status": 200}
                    limits = self._call.admission.headers.items()
                    headers = [(name.encode(), text.encode()) for name, text in limits]
                    await send({**start, "headers": [*_SSE_HEADERS, *headers]})
                    started = True
                    await _send_events(send, self._writer.opening())
                await _send_events(send, self._writer.chunks(index, event))
            await _send_events(send, self._writer.closing(fanout.choices))
        except Exception as error:
            if not started:
                raise
            api_error = as_api_error(error)
            label_error(scope, api_error.code or api_error.type)
            await _send_events(send, self._writer.failed(api_error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_events(send: Send, events: Iterable[Event]) -> None:
    body = b"".join(event.encode() for event in events)
    if body:
        await send({"type": "http.response.body", "body": body, "more_body": True})


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Awaits `work`, or cancels it when the client goes away first. Returns whether it was done."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
            return True
        return False
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
