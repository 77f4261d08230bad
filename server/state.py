"""What lives as long as the app, and what a request tells the metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import Request

from remix_runtime.contracts import Engine
from remix_runtime.errors import EngineBusyError

if TYPE_CHECKING:
    from server.metrics import Metrics
    from server.registry import Registry
    from server.settings import ServerSettings

OTHER = "other"
_LABELS = "remix.labels"


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


@dataclass(frozen=True, slots=True)
class Services:
    """`app.state.services`, present while the app's lifespan is open."""

    settings: ServerSettings
    engine: Engine
    registry: Registry
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
class RequestLabels:
    """Filled in while a request is handled, read by the metrics at its end."""

    adapter: str = OTHER
    """A name that the registry resolved, so the set of values is bounded."""
    error: str | None = None


def open_labels(scope: MutableMapping[str, Any]) -> RequestLabels:
    labels = RequestLabels()
    scope[_LABELS] = labels
    return labels


def label_adapter(scope: MutableMapping[str, Any], adapter: str) -> None:
    scope[_LABELS].adapter = adapter


def label_error(scope: MutableMapping[str, Any], error: str) -> None:
    if _LABELS in scope:
        scope[_LABELS].error = error
