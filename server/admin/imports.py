"""Imports adapters from a source, registers them and describes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta

from remix_runtime.engine_state import AdapterState
from remix_runtime.turn import Turn
from server.admin import schemas
from server.admin.services import ACTOR, AdminServices
from server.store import Progress
from server.tenancy.records import AdapterRecord, now


async def import_adapter(
    services: AdminServices, source: str, *, progress: Callable[[Progress], None] | None = None
) -> tuple[AdapterRecord, bool]:
    """Imports and registers an adapter. Returns it, and whether it is new. Raises `StoreError`,
    `TenancyError`."""
    stored = await services.store.import_from(source, progress=progress)
    record = AdapterRecord(
        digest=stored.digest,
        source=stored.source,
        num_bytes=stored.num_bytes,
        description=asdict(stored.description),
    )
    registered = await services.directory.add_adapter(record, actor=ACTOR)
    return registered, registered is record


async def describe_adapters(
    services: AdminServices, records: Sequence[AdapterRecord]
) -> list[schemas.Adapter]:
    """Describes registered adapters: the tenants whose sets name them and their state on this
    server."""
    users = await _users(services, {record.digest for record in records})
    states = {state.digest: state for state in await services.engine.adapter_states()}
    return [
        schemas.Adapter(
            **asdict(record),
            tenants=users[record.digest],
            replica=_replica(services, states.get(record.digest)),
        )
        for record in records
    ]


async def _users(services: AdminServices, digests: set[str]) -> Mapping[str, list[str]]:
    """The tenants whose sets name each of the adapters, by this server's copy of the directory."""
    users: Mapping[str, list[str]] = {digest: [] for digest in digests}
    turn = Turn()
    for tenant, state in services.follower.snapshot.tenants.items():
        for digest in digests.intersection(state.set.adapters.values()):
            users[digest].append(tenant)
        await turn.end_if_long()
    return users


def _replica(services: AdminServices, state: AdapterState | None) -> schemas.ReplicaState | None:
    if state is None:
        return None
    idle = state.idle_seconds
    return schemas.ReplicaState(
        tier=state.tier,
        slot=state.slot,
        pins=services.adapters.pins(state.digest),
        requests=state.requests,
        last_used=None if idle is None else now() - timedelta(seconds=idle),
        load_seconds=services.adapters.load_seconds(state.digest),
        read_seconds=state.read_seconds,
    )
