"""What the bench asks of a system, and what it gets back. Standard library only.

These types cross a pipe between processes, possibly of different Python environments, so this
module and `child` import nothing of the project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that are all submitted at the same moment, decoded greedily, eos ignored."""

    prompts: list[list[int]]
    new_tokens: int
    """Output tokens of each request."""
    adapters: list[int | None]
    """For each request the index of a loaded adapter, or None for the base model alone."""
    unloaded: bool = False
    """The system drops its adapters before the workload; else it has them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One workload, measured. Outer lists follow the requests, inner lists the output tokens."""

    arrivals: list[list[float]]
    """Seconds from submission until the token was there."""
    tokens: list[list[int]]
    """Output token ids; empty where the system does not tell them."""
    texts: list[str] | None = None
    """Output texts, from a system that tells no token ids."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A workload's run, and what the process used of the CPU while it waited for the workload."""

    run: Run
    idle_cpu: float
    idle_wall: float


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a system could not start, or a workload not run, in one line."""

    reason: str


class System(Protocol):
    """Built once in its process with the options of its lane; then runs workloads one by one."""

    about: dict[str, Any]
    """Versions, thread count and settings that a reader needs to repeat the measurement."""

    def run(self, workload: Workload) -> Run: ...
