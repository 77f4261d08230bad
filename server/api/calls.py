"""Begins a generating request: its place in the tenant's quota, before its body is read, and its
pinned target."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request

from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import EngineBusyError
from server.http.body import SMALL_BODY_BYTES, StrictRequest, StrictRoute
from server.http.errors import ApiError, as_api_error
from server.http.request import state_of
from server.live.canary.running import Trial
from server.live.quotas import Admission, RateLimitedError
from server.live.sets import Target
from server.services import Services, services_of

_SHORT_BODY_BYTES = 2 << 10


@dataclass(frozen=True, slots=True)
class Call:
    """What a request holds until the last byte of its answer."""

    tenant: str
    target: Target
    admission: Admission
    defaults: AdapterDefaults
    """What the request has where it says nothing else."""
    is_short: bool
    """Whether its body is: whatever is in it, its tokens are made within a few milliseconds."""
    trial: Trial | None = None
    """Of the canary of its name, where there is one."""
    has_fallback: bool = False
    """Whether another adapter answers if this one fails before the client has seen anything."""


class CountedRequest(StrictRequest):
    """Takes its place in the tenant's quota before the first byte of its body is read: what is over
    the quota costs next to nothing, and what is sent by halves holds a place."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                await _admit(self)
            except (RateLimitedError, EngineBusyError) as error:
                await self._read_model()
                raise as_api_error(error) from error
        return await super().body()

    async def _read_model(self) -> None:
        """Reads a small body all the same: the metrics name the model that was asked for."""
        announced = self.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) <= SMALL_BODY_BYTES:
            with suppress(ApiError):
                await super().body()
                await self.json()


class CountedRoute(StrictRoute):
    """A route whose requests with a body count in their tenant's quota."""

    request_class = CountedRequest


async def _admit(http: Request) -> None:
    """Takes a place until the last byte of the answer. Raises `RateLimitedError`,
    `EngineBusyError`."""
    services, state = services_of(http), state_of(http.scope)
    if state.is_late:
        raise EngineBusyError("The server is shutting down.", retry_after=5)
    quota = services.access.quota(state.tenant)
    admission = await services.quotas.obtain(state.tenant, quota)
    state.admission = state.holds.enter_context(admission)


def resolve(http: Request, model: str) -> Target:
    """What the tenant's set has under the name `model`. Raises `UnknownModelError`."""
    services, state = services_of(http), state_of(http.scope)
    may_use_base = services.access.quota(state.tenant).may_use_base
    target = services.sets.resolve(state.tenant, model, may_use_base=may_use_base)
    state.name, state.digest = target.name, target.digest
    return target


async def open_call(http: Request, model: str) -> Call:
    """Pins the adapter that the request's `model` stands for: whatever is swapped meanwhile, it
    ends on the adapter that it began with. Raises `UnknownModelError`,
    `AdapterUnavailableError`."""
    return await open_target(http, resolve(http, model))


async def open_target(
    http: Request, target: Target, *, trial: Trial | None = None, has_fallback: bool = False
) -> Call:
    """The same for a target. Raises `AdapterUnavailableError`."""
    services, state = services_of(http), state_of(http.scope)
    assert state.admission is not None, "the route is no CountedRoute"
    state.digest = target.digest
    if target.digest is not None:
        services.adapters.pin(target.digest)
        state.holds.callback(services.adapters.unpin, target.digest)
    return Call(
        state.tenant,
        target,
        state.admission,
        await defaults_of(services, target),
        is_short=state.body_bytes <= _SHORT_BODY_BYTES,
        trial=trial,
        has_fallback=has_fallback,
    )


async def defaults_of(services: Services, target: Target) -> AdapterDefaults:
    """Those of the adapter; the base alone has none. Raises `AdapterUnavailableError`."""
    if target.digest is None:
        return AdapterDefaults()
    return await services.adapters.defaults(target.digest)
