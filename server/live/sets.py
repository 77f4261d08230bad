"""The live sets. Here, and only here, a request's `model` becomes a digest."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from remix_runtime.errors import RemixError
from server.live.adapters import LiveAdapters
from server.live.canary.running import RunningCanaries


@dataclass(frozen=True, slots=True)
class Target:
    """What a model name stands for while one request runs."""

    name: str
    digest: str | None
    """None is the base model alone."""

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of the answers."""
        return self.digest or f"base-{self.name}"


class UnknownModelError(RemixError):
    """No model of this name is served to this client."""


@dataclass(frozen=True, slots=True)
class LiveSet:
    """A revision of a tenant's set that is live. It is replaced as a whole."""

    revision: int = 0
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Names to digests."""
    since: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""


_EMPTY = LiveSet(since=0)


class LiveSets:
    """The live set of every tenant. Each pins its adapters while it is live."""

    def __init__(self, base_name: str, adapters: LiveAdapters) -> None:
        self.base_name = base_name
        self.started = int(time.time())
        self._adapters = adapters
        self._sets: dict[str, LiveSet] = {}
        self.canaries = RunningCanaries(adapters)
        """Which share the requests for names of the sets."""

    def resolve(self, tenant: str, model: str, *, may_use_base: bool) -> Target:
        """What a request's `model` stands for. Raises `UnknownModelError`, the same for another
        tenant's name and for nobody's; a name never falls back to the base."""
        digest = self.live(tenant).adapters.get(model)
        if digest is not None:
            return Target(model, digest)
        if may_use_base and model == self.base_name:
            return Target(model, None)
        raise UnknownModelError(
            f"The model {model[:100]!r} does not exist or you do not have access to it."
        )

    def targets(self, tenant: str, *, may_use_base: bool) -> list[Target]:
        """All that `resolve` would find: the base first, then the adapters in the order of the
        set."""
        base = [Target(self.base_name, None)] if may_use_base else []
        return base + [Target(name, digest) for name, digest in self.live(tenant).adapters.items()]

    def live(self, tenant: str) -> LiveSet:
        return self._sets.get(tenant, _EMPTY)

    @property
    def all(self) -> Mapping[str, LiveSet]:
        return self._sets

    def flip(self, tenant: str, revision: int, adapters: Mapping[str, str]) -> bool:
        """Makes a revision live, unless that one or a newer one is. One moment: requests that
        were resolved before keep what they have pinned, all others get the new set. Returns
        whether the revision is newer than the one before."""
        before = self.live(tenant)
        if tenant in self._sets and revision <= before.revision:
            return False
        for digest in adapters.values():
            self._adapters.pin(digest)
        self._sets[tenant] = LiveSet(revision, dict(adapters))
        for digest in before.adapters.values():
            self._adapters.unpin(digest)
        return revision > before.revision

    def drop(self, tenant: str) -> None:
        """Unpins and forgets the set of a tenant that is gone."""
        for digest in self._sets.pop(tenant, _EMPTY).adapters.values():
            self._adapters.unpin(digest)
