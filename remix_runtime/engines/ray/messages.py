"""What a server and its replicas tell each other. Ray carries it between processes of ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from remix_runtime.contracts import AdapterInfo, ModelInfo, TokenEvent
from remix_runtime.engine_state import EngineStats, Health

Load: TypeAlias = Mapping[str, tuple[int, ...]]
"""How often each expert of an adapter was activated, by module."""


def summed_loads(loads: Iterable[Load]) -> Load:
    sums: dict[str, tuple[int, ...]] = {}
    for load in loads:
        for module, counts in load.items():
            before = sums.get(module, (0,) * len(counts))
            sums[module] = tuple(map(sum, zip(before, counts, strict=True)))
    return sums


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a replica is made from. Servers that share replicas must agree on all of it."""

    engine: str
    options: Mapping[str, Any]
    """Of the engine in the replica."""
    adapters: int
    """Those that it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    settings: Settings
    model: ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a replica says of itself at this moment."""

    replica: str
    pid: int
    """Of its process, on its own machine."""
    stats: EngineStats
    health: Health
    adapters: tuple[str, ...]
    """Digests of those that it has, the one unused longest ago first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    info: AdapterInfo
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """The first message of a request: it is at this replica."""

    replica: str
    found: bool
    """Whether the replica has its adapter; true for the base alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The replica lacks the request's adapter and waits for it."""

    round: int
    """The same for requests that one delivery is enough for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Events:
    """Token events, and what the engine has scheduled of the request so far."""

    events: tuple[TokenEvent, ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last message of a request, with its last event or with its error."""

    last: Events | None
    error: Exception | None
    report: Report
    load: Load = field(default_factory=dict)
    """Of the request's adapter at this replica, since the server loaded it."""


Message: TypeAlias = Accepted | Wanted | Events | Ended
