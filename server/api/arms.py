"""Answers a request for a name that may have a canary: one side is chosen, what comes of it is
counted, and where the canary fails the live adapter answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from server.api.calls import Call, open_call, open_target, resolve
from server.http.errors import ApiError, as_api_error
from server.http.request import CLIENT_GONE, RequestState, state_of
from server.live.canary.figures import Arm
from server.live.canary.running import Trial
from server.live.sets import Target
from server.services import services_of

Answer = Callable[[Call], Awaitable[Response]]
"""Makes the answer of a call. It may be asked for a second one, of another adapter."""

_LOST = "replica_lost"
_BLAMELESS = frozenset({"busy", "directory_unavailable", _LOST})
"""What a 503 is called that says nothing of an adapter."""


async def answered(http: Request, model: str, key: str | None, answer: Answer) -> Response:
    """The answer to a generating request for `model`. Requests with the same `key` are on the same
    side of a canary; those without one are drawn by their ids. Raises as `answer` does, and
    `UnknownModelError`, `AdapterUnavailableError`."""
    services, state = services_of(http), state_of(http.scope)
    canary = services.sets.canaries.find(state.tenant, model)
    if canary is None:
        return await answer(await open_call(http, model))
    live = resolve(http, model)
    trial = canary.begin(state.request_id if key is None else key)
    return ArmResponse(http, live, Target(live.name, canary.record.digest), trial, answer)


class ArmResponse(Response):
    """The answer of one arm, or of the live one after the canary's."""

    def __init__(
        self, http: Request, live: Target, canary: Target, trial: Trial, answer: Answer
    ) -> None:
        super().__init__()
        self._http = http
        self._live = live
        self._canary = canary
        self._trial = trial
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = state_of(scope)
        try:
            if self._trial.arm is Arm.CANARY:
                await self._with_fallback(scope, receive, send)
            else:
                await self._as_live(scope, receive, send)
        except BaseException:
            self._trial.leave()
            raise
        if self._trial.is_over:
            return
        if state.error == CLIENT_GONE:
            self._trial.abandon()
        elif state.error in _BLAMELESS:
            self._trial.leave()
        else:  # what failed half-way was told to the client in its stream
            self._trial.end(failed=state.error is not None)

    async def _as_live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._once(self._live, self._trial, scope, receive, send)
        except Exception as error:
            failure = as_api_error(error)
            if _is_fault(failure):
                self._trial.end(failed=True)
            raise failure from error

    async def _with_fallback(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._once(self._canary, self._trial, scope, receive, send)
        except Exception as error:
            failure = as_api_error(error)
            if not _falls_back(failure):
                raise failure from error
        else:
            return
        state = state_of(scope)
        _forget(state)
        self._trial.begin_again()
        if _is_fault(failure):
            self._trial.end(failed=True)
        try:
            await self._once(self._live, None, scope, receive, send)
        except Exception as error:
            if state.end_stream is None:
                raise
            await state.end_stream(error)
        # A mistake of the client would have failed again: it was the canary's defaults or template.
        if not self._trial.is_over and state.error is None and failure.code != _LOST:
            self._trial.end(failed=True)
        self._trial.leave()

    async def _once(
        self, target: Target, trial: Trial | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        has_fallback = target is self._canary
        call = await open_target(self._http, target, trial=trial, has_fallback=has_fallback)
        response = await self._answer(call)
        await response(scope, receive, send)


def _is_fault(error: ApiError) -> bool:
    """Whether the engine or the adapter is at fault, and not the client or a full queue."""
    return error.status_code >= 500 and error.code not in _BLAMELESS


def _falls_back(error: ApiError) -> bool:
    """Whether another adapter may do better."""
    if _is_fault(error) or error.code == _LOST:
        return True
    return 400 <= error.status_code < 500 and error.status_code != 429


def _forget(state: RequestState) -> None:
    """What the log would say of the attempt that failed."""
    state.error = state.generation = None
    state.generated_tokens = state.queue_seconds = state.first_token_seconds = None
