"""What lives as long as the app."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fastapi import Request

from remix_runtime.contracts import Engine
from remix_runtime.fairness.worker import FairWorker
from remix_runtime.watch import Watch
from server.live.access import Access
from server.live.adapters import ADAPTERS, LiveAdapters
from server.live.bodies import Bodies
from server.live.quotas import Quotas
from server.live.remembered import Memory
from server.live.routing import RoutingMonitor
from server.live.sets import LiveSets
from server.live.worker import make_worker
from server.metrics import Metrics
from server.settings import ServerSettings

MAX_TEXTS = 256
"""Texts that wait for the tokenizer, in shares of the tenants."""


class Gate:
    """Counts the requests in flight."""

    def __init__(self) -> None:
        self.is_leaving = False
        """The server ends soon: whoever sends it requests should stop."""
        self.closed = False
        """What begins now is refused, where it has work to do."""
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        self._inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if self._inside == 0:
                self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`app.state.services`, present while the app's lifespan is open."""

    settings: ServerSettings
    engine: Engine
    access: Access
    quotas: Quotas
    sets: LiveSets
    adapters: LiveAdapters
    metrics: Metrics
    routing: RoutingMonitor
    watch: Watch
    """The server's long-lived tasks."""
    bodies: Bodies
    gate: Gate = field(default_factory=Gate)
    worker: FairWorker = field(default_factory=make_worker)
    """For what is too long for a turn of the event loop."""
    memory: Memory = field(default_factory=Memory)
    """Responses that clients may come back to."""
    tokenizing: FairWorker = field(
        default_factory=lambda: FairWorker(
            "remix-tokenizer", places=MAX_TEXTS, what="texts wait for the tokenizer"
        )
    )
    """Where the tokenizer is used: fast ones must not be encoded with from two threads at once."""

    @property
    def failing(self) -> tuple[str, ...]:
        """The long-lived tasks that do not work, the engine's too, and `ADAPTERS` while there are
        some that requests are refused for."""
        adapters = (ADAPTERS,) if self.adapters.num_unavailable else ()
        return (*self.watch.failing, *self.engine.health().failing, *adapters)

    @property
    def max_choices(self) -> int:
        """The most sequences of one request: as many as are allowed and could ever be admitted."""
        return min(self.settings.max_choices, self.engine.model.max_requests)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services
