"""Servers that share a directory, as plain data: without an engine, files, tasks or time."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field

from remix_runtime.errors import AdapterUnavailableError
from server.live.sets import UnknownModelError
from server.live.swap import BadSetError
from server.store import RejectedAdapterError
from server.tenancy.errors import UnknownAdapterError, UnknownRevisionError
from tests.unit.tenancy.model import Adapters
from tests.unit.tenancy.model import Model as DirectoryModel

BASE = "base"

# Adapters, which have names here instead of digests.
GOOD = ("x", "y", "z")
BAD = "bad"
"""No engine takes it."""
DAMAGED = "damaged"
"""No store takes it."""
UNKNOWN = "unknown"
"""Nobody has it."""


@dataclass
class Live:
    revision: int
    adapters: Adapters
    loaded: bool
    """By a swap or by following one; a restarted server may wait for the first request."""


@dataclass
class ServerModel:
    live: dict[str, Live] = field(default_factory=dict)
    wanted: dict[str, tuple[int, Adapters]] = field(default_factory=dict)
    """Newer sets by tenant, which an adapter that cannot be loaded keeps from being live."""
    running: dict[int, str] = field(default_factory=dict)
    """Requests, and the adapters that they must end on."""
    refused: set[str] = field(default_factory=set)
    full: bool = False
    held: set[str] = field(default_factory=set)
    """By the engine: with `stored`, what was seen before a call."""
    stored: set[str] = field(default_factory=set)

    @property
    def pins(self) -> Counter[str]:
        counted = Counter(self.running.values())
        for live in self.live.values():
            counted.update(live.adapters.values())
        for _, adapters in self.wanted.values():
            counted.update(adapters.values())
        return counted

    @property
    def needed(self) -> set[str]:
        """What the engine must hold."""
        loaded = [live.adapters.values() for live in self.live.values() if live.loaded]
        return set(self.running.values()).union(*loaded)

    def make_live(self, tenant: str, revision: int, adapters: Adapters) -> None:
        if tenant not in self.live or self.live[tenant].revision < revision:
            self.live[tenant] = Live(revision, adapters, loaded=True)


@dataclass
class Model:
    """The calls of `Servers`, by their names. `at` is the server that is asked."""

    directory: DirectoryModel = field(default_factory=DirectoryModel)
    servers: list[ServerModel] = field(default_factory=lambda: [ServerModel(), ServerModel()])

    def create_tenant(self, at: int, tenant: str) -> None:
        self.directory.create_tenant(tenant)

    def delete_tenant(self, at: int, tenant: str) -> None:
        self.directory.delete_tenant(tenant)

    def import_adapter(self, at: int, adapter: str) -> None:
        if adapter == DAMAGED:
            raise RejectedAdapterError("", quarantine_id="")
        self.directory.adapters.add(adapter)
        self.servers[at].stored.add(adapter)

    def delete_adapter(self, at: int, adapter: str) -> None:
        self.directory.delete_adapter(adapter)

    def put(
        self, at: int, tenant: str, adapters: Adapters, dry_run: bool, *, expected: int | None
    ) -> tuple[int, Adapters]:
        after = deepcopy(self.directory)
        with suppress(UnknownAdapterError):  # one of the reasons below
            after.put_set(tenant, adapters, expected=expected)
        bad = [
            name
            for name, adapter in adapters.items()
            if name == BASE
            or adapter not in self.directory.adapters
            or not self._can_load(self.servers[at], adapter)
        ]
        if bad:
            raise BadSetError(dict.fromkeys(bad, ""))
        if dry_run:
            return self.directory.revision(tenant), adapters
        self.directory = after
        self.servers[at].make_live(tenant, after.revision(tenant), adapters)
        return after.revision(tenant), adapters

    def roll_back(
        self, at: int, tenant: str, to: int, *, expected: int | None
    ) -> tuple[int, Adapters]:
        if tenant in self.directory.quotas and to not in (0, *self.directory.sets[tenant]):
            raise UnknownRevisionError(tenant, to)
        adapters = self.directory.sets[tenant].get(to, {})
        return self.put(at, tenant, adapters, False, expected=expected)

    def begin(self, at: int, tenant: str, name: str, number: int) -> str:
        server = self.servers[at]
        if tenant not in server.live or name not in server.live[tenant].adapters:
            raise UnknownModelError
        adapter = server.live[tenant].adapters[name]
        if not self._can_load(server, adapter):
            raise AdapterUnavailableError("as the model says")
        server.running[number] = adapter
        return adapter

    def end(self, at: int, number: int, whole: bool) -> None:
        del self.servers[at].running[number]

    def refresh(self, at: int) -> None:
        server = self.servers[at]
        for tenant in server.live.keys() - self.directory.quotas.keys():
            del server.live[tenant]
        server.wanted = {
            tenant: (self.directory.revision(tenant), self.directory.live(tenant))
            for tenant in self.directory.quotas
        }

    def collect(self, at: int) -> None:
        server = self.servers[at]
        server.stored &= self.directory.adapters | server.pins.keys()

    def refuse(self, at: int, adapter: str | None) -> None:
        """From now on the engine does not load this adapter; None: no adapter at all."""
        if adapter is None:
            self.servers[at].full = True
        else:
            self.servers[at].refused.add(adapter)

    def heal(self, at: int) -> None:
        self.servers[at].refused.clear()
        self.servers[at].full = False

    def restart(self, at: int) -> None:
        self.servers[at] = ServerModel(
            live={
                tenant: Live(
                    self.directory.revision(tenant), self.directory.live(tenant), loaded=False
                )
                for tenant in self.directory.quotas
            }
        )

    def settle(self) -> None:
        """What happens without a call: wanted sets become live, what nobody needs is freed."""
        for server in self.servers:
            for tenant, (revision, adapters) in list(server.wanted.items()):
                if all(self._can_load(server, adapter) for adapter in adapters.values()):
                    server.make_live(tenant, revision, adapters)
                behind = tenant not in server.live or server.live[tenant].revision < revision
                if not behind:
                    del server.wanted[tenant]
            server.held &= server.pins.keys()

    def _can_load(self, server: ServerModel, adapter: str) -> bool:
        if adapter in server.held:
            return True
        if server.full or adapter in server.refused | {BAD}:
            return False
        return adapter in self.directory.adapters | server.stored
