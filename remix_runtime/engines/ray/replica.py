"""One replica: an engine of another kind in a process of Ray's, and its adapters."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import ray
from ray import serve
from ray.serve._private import replica as serve_replica

from remix_runtime.contracts import FinishReason, GenerationRequest, TokenEvent
from remix_runtime.engine_state import AdapterState
from remix_runtime.engines.by_name import CONFIGS, make
from remix_runtime.engines.ray.bundle import Bundle
from remix_runtime.engines.ray.kept import KeptAdapters
from remix_runtime.engines.ray.messages import (
    Accepted,
    Description,
    Ended,
    Events,
    Loaded,
    Message,
    Report,
    Settings,
    Wanted,
)
from remix_runtime.errors import RemixError

log = logging.getLogger(__name__)


class Replica:
    """What Ray Serve deploys. Its engine's queue is fair between tenants, of all servers."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc] # Ray awaits it
        self._settings = settings
        self._name = serve.get_replica_context().replica_tag
        _listen_on_own_address()
        self._engine = make(CONFIGS[settings.engine](**settings.options))
        await self._engine.start()
        self._adapters = KeptAdapters(self._engine, settings.adapters, ray.get)
        self._before: set[str] = set()
        """Requests that have not come to the engine yet."""
        self._aborted: set[str] = set()
        """Those of them that were aborted."""

    def check_health(self) -> None:
        """Ray Serve makes a new replica in the place of one whose engine is dead."""
        health = self._engine.health()
        if not health.alive:
            raise RemixError(health.reason)

    def describe(self) -> Description:
        return Description(settings=self._settings, model=self._engine.model)

    def report(self) -> Report:
        return Report(
            replica=self._name,
            pid=os.getpid(),
            stats=self._engine.stats(),
            health=self._engine.health(),
            adapters=self._adapters.digests,
        )

    async def states(self) -> list[AdapterState]:
        return [s for s in await self._engine.adapter_states() if s.digest in self._adapters]

    # -- adapters -----------------------------------------------------------------------------

    async def load(self, bundle: Bundle, digest: str | None, shown: str) -> Loaded | RemixError:
        try:
            info = await self._adapters.load(bundle, digest, shown)
        except RemixError as error:
            return error
        return Loaded(info=info, report=self.report())

    async def deliver(self, replica: str, digest: str, bundle: Bundle) -> None:
        """All replicas are told, one is meant."""
        if replica == self._name:
            await self._adapters.deliver(digest, bundle)

    async def drop(self, digest: str) -> Report:
        await self._adapters.drop(digest)
        return self.report()

    # -- requests -----------------------------------------------------------------------------

    async def abort(self, request_id: str) -> None:
        if request_id in self._before:
            self._aborted.add(request_id)
        await self._engine.abort(request_id)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Message, None]:
        """The messages of one request. Ray cancels it when its server goes away."""
        digest = request.digest
        yield Accepted(replica=self._name, found=digest is None or digest in self._adapters)
        last, error = None, None
        self._before.add(request.request_id)
        try:
            async with aclosing(self._messages(request)) as messages:
                async for message in messages:
                    if isinstance(message, Events) and message.events[-1].finish_reason:
                        last = message
                    else:
                        yield message
        except RemixError as known:
            error = known
        except Exception as unknown:
            log.exception("request %s failed", request.request_id)
            error = RemixError(
                f"the engine could not compute this request: {type(unknown).__name__}"
            )
        finally:
            self._before.discard(request.request_id)
            self._aborted.discard(request.request_id)
        load = {} if digest is None else self._adapters.expert_load(digest)
        yield Ended(last=last, error=error, report=self.report(), load=load)

    async def _messages(self, request: GenerationRequest) -> AsyncGenerator[Message, None]:
        digest = request.digest
        async with AsyncExitStack() as stack:
            if digest is not None:
                while not await self._adapters.pin(digest):
                    yield Wanted(round=self._adapters.round_of(digest))
                    await self._adapters.wait(digest)
                stack.callback(self._adapters.unpin, digest)
            self._before.discard(request.request_id)
            if request.request_id in self._aborted:
                event = TokenEvent(token_ids=(), text="", finish_reason=FinishReason.ABORT)
                yield Events(events=(event,), prompt_tokens=0, output_tokens=0)
                return
            batches = _together(self._engine.generate(request))
            await stack.enter_async_context(aclosing(batches))
            async for events in batches:
                yield Events(
                    events=tuple(events),
                    prompt_tokens=request.meter.prompt_tokens,
                    output_tokens=request.meter.output_tokens,
                )


def _listen_on_own_address() -> None:
    """Ray Serve opens a port of each replica, which takes pickle, to all networks of the machine,
    and has no setting for it. All other ports of Ray are on the address that Ray was given."""
    own = ray.util.get_node_ip_address()
    listen = serve_replica.add_port_to_grpc_server

    def on_own(server: Any, address: str) -> Any:
        return listen(server, address.replace("[::]", f"[{own}]" if ":" in own else own))

    serve_replica.add_port_to_grpc_server = on_own


async def _together(
    events: AsyncGenerator[TokenEvent, None],
) -> AsyncGenerator[list[TokenEvent], None]:
    """Events in groups: all that came while the last group was sent. A message costs Ray about a
    millisecond, many steps less."""
    ready = asyncio.Event()
    waiting: list[TokenEvent] = []

    async def collect() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    waiting.append(event)
                    ready.set()
        finally:
            ready.set()

    collecting = asyncio.get_running_loop().create_task(collect())
    try:
        while True:
            if not waiting and not collecting.done():
                await ready.wait()
                ready.clear()
            if waiting:
                group = waiting[:]
                waiting.clear()
                yield group
            elif collecting.done():
                await collecting  # raises what the engine raised
                return
    finally:
        if not collecting.done():
            collecting.cancel()
            await asyncio.wait([collecting])
