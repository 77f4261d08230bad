"""What lives as long as the app, and what one request holds and tells the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from remix_runtime.contracts import Engine
from remix_runtime.errors import EngineBusyError

if TYPE_CHECKING:
    from server.access import Access
    from server.live.adapters import LiveAdapters
    from server.live.sets import LiveSets
    from server.metrics import Metrics
    from server.quotas import Quotas
    from server.settings import ServerSettings

OTHER = "other"
_STATE = "remix.request"


class Gate:
    """Counts the generations in flight; once closed it lets no new one in."""

    def __init__(self) -> None:
        self.closed = False
        self._inside = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def enter(self) -> Iterator[None]:
        if self.closed:
            raise EngineBusyError("The server is shutting down.", retry_after=5)
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
    gate: Gate = field(default_factory=Gate)

    @property
    def max_choices(self) -> int:
        """Sequences of one request: as many as are allowed and could ever be admitted."""
        return min(self.settings.max_choices, self.engine.model.max_requests)


def services_of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


@dataclass(slots=True)
class RequestState:
    """Filled in while a request is handled; the metrics read it at the end."""

    tenant: str = ""
    """Whom the key belongs to; `SINGLE_USER` too."""
    adapter: str = OTHER
    """A name that the tenant's set resolved, so the set of values is bounded."""
    error: str | None = None
    holds: ExitStack = field(default_factory=ExitStack)
    """What is given back after the last byte of the answer, whatever the end is."""


def open_state(scope: MutableMapping[str, Any]) -> RequestState:
    state = RequestState()
    scope[_STATE] = state
    return state


def state_of(scope: MutableMapping[str, Any]) -> RequestState:
    """The request's state; made where nobody counts requests (the admin API)."""
    state: RequestState = scope.setdefault(_STATE, RequestState())
    return state


def label_error(scope: MutableMapping[str, Any], error: str) -> None:
    if _STATE in scope:
        scope[_STATE].error = error
