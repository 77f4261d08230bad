"""Begins a generating request: its place in the tenant's quota and its pinned target."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from remix_runtime.contracts import AdapterDefaults
from server.http.request import state_of
from server.live.quotas import Admission
from server.live.sets import Target
from server.services import Services, services_of


@dataclass(frozen=True, slots=True)
class Call:
    """What a request holds until the last byte of its answer."""

    tenant: str
    target: Target
    admission: Admission
    defaults: AdapterDefaults
    """What the request has where it says nothing else."""


def admit(http: Request) -> Admission:
    """Counts the request in its tenant's quota, until the last byte of the answer. Raises
    `RateLimitedError`."""
    services, state = services_of(http), state_of(http.scope)
    quota = services.access.quota(state.tenant)
    return state.holds.enter_context(services.quotas.admit(state.tenant, quota))


def resolve(http: Request, model: str) -> Target:
    """What the tenant's set has under the name `model`. Raises `UnknownModelError`."""
    services, state = services_of(http), state_of(http.scope)
    may_use_base = services.access.quota(state.tenant).may_use_base
    target = services.sets.resolve(state.tenant, model, may_use_base=may_use_base)
    state.name, state.digest = target.name, target.digest
    return target


async def open_call(http: Request, model: str) -> Call:
    """Counts the request and pins the adapter that its `model` stands for: whatever is swapped
    meanwhile, it ends on the adapter that it began with. Raises `RateLimitedError`,
    `UnknownModelError`, `AdapterUnavailableError`."""
    services, state = services_of(http), state_of(http.scope)
    admission = admit(http)
    target = resolve(http, model)
    if target.digest is not None:
        services.adapters.pin(target.digest)
        state.holds.callback(services.adapters.unpin, target.digest)
    return Call(state.tenant, target, admission, await defaults_of(services, target))


async def defaults_of(services: Services, target: Target) -> AdapterDefaults:
    """Those of the adapter; the base alone has none. Raises `AdapterUnavailableError`."""
    if target.digest is None:
        return AdapterDefaults()
    return await services.adapters.defaults(target.digest)
