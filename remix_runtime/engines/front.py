"""Runs the life of a request as its caller sees it, the same in every engine.

Admission, the stream of events, abort, drain and health are here, and so are the requests' pins on
adapters. An engine derives from `EngineFront` and says how requests are computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from llguidance import LLTokenizer

from remix_runtime.contracts import AdapterInfo, GenerationRequest, ModelInfo, TokenEvent, Tokenizer
from remix_runtime.engine_state import AdapterState, Health
from remix_runtime.engines.bad_words import BadWords, bad_word_ids
from remix_runtime.engines.grammar import Grammars, Matcher
from remix_runtime.engines.served import ServedAdapters
from remix_runtime.engines.validate import Validation
from remix_runtime.errors import (
    AdapterNotLoadedError,
    EngineBusyError,
    EngineDeadError,
    InvalidRequestError,
)
from remix_runtime.fairness.shares import Shares
from remix_runtime.turn import Turn

STALL_SECONDS = 60.0
"""A step that takes longer than this counts as a hung device."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made of a request before its turn."""

    bad_words: BadWords = ()
    matcher: Matcher | None = None


class Stream:
    """Where the events of one request go, until its last one. Engines add what they keep of it."""

    def __init__(self, request: GenerationRequest, prepared: Prepared) -> None:
        self.request = request
        self.prepared = prepared
        self.events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()


S = TypeVar("S", bound=Stream)


class EngineFront(ABC, Generic[S]):
    """See `contracts.Engine`. Used on one event loop."""

    def __init__(self, adapters: ServedAdapters[Any], *, max_requests: int) -> None:
        self._served = adapters
        self._grammars = Grammars(self._grammar_tokenizer)
        self._validation = Validation()
        # A free place counts as one in the queue, so that an idle engine takes a full batch.
        self._shares = Shares(max_requests)
        self._streams: dict[str, S] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False

    # -- what an engine says of itself ----------------------------------------------------------

    @property
    @abstractmethod
    def model(self) -> ModelInfo: ...

    @property
    @abstractmethod
    def tokenizer(self) -> Tokenizer: ...

    @property
    @abstractmethod
    def _is_started(self) -> bool: ...

    @property
    @abstractmethod
    def _death(self) -> str | None:
        """Why the engine works no more."""

    @property
    @abstractmethod
    def _busy_since(self) -> float | None:
        """When the engine last made progress, on the monotonic clock; None while it has no work."""

    @property
    def _failing(self) -> tuple[str, ...]:
        """Tasks that do not work, and that requests can do without."""
        return ()

    @abstractmethod
    def _grammar_tokenizer(self) -> LLTokenizer:
        """The tokenizer as grammars need it. Called in another thread. Raises
        `InvalidRequestError`."""

    @abstractmethod
    def _open(self, request: GenerationRequest, prepared: Prepared) -> S:
        """Makes the stream of a request that is admitted."""

    @abstractmethod
    def _submit(self, stream: S) -> None:
        """Starts to compute the request; its events go through `_send`."""

    @abstractmethod
    async def abort(self, request_id: str) -> None: ...

    @abstractmethod
    async def _shut_down(self) -> None:
        """Frees everything; no request is open any more, or the device hangs."""

    # -- life -----------------------------------------------------------------------------------

    async def stop(self, *, drain_seconds: float = 0.0) -> None:
        self._draining = True
        if not self._is_started:
            return
        await self._wait_idle(drain_seconds)
        for request_id in list(self._streams):
            await self.abort(request_id)
        await self._wait_idle(STALL_SECONDS)  # a step that hangs must not keep the process
        self._grammars.close()
        await self._shut_down()

    def health(self) -> Health:
        if death := self._death:
            return Health(alive=False, ready=False, reason=f"engine stopped: {death}")
        if not self._is_started:
            return Health(alive=not self._draining, ready=False, reason="not started")
        since = self._busy_since
        if since is not None and time.monotonic() - since > STALL_SECONDS:
            return Health(alive=False, ready=False, reason=f"no progress for {STALL_SECONDS:g} s")
        if self._draining:
            return Health(alive=True, ready=False, reason="draining")
        return Health(alive=True, ready=True, failing=self._failing)

    def _require_alive(self) -> None:
        """Raises `EngineDeadError`."""
        if death := self._death:
            raise EngineDeadError(f"the engine stopped: {death}")
        if not self._is_started:
            raise EngineDeadError("the engine is not started")

    async def _wait_idle(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), seconds)

    # -- adapters -------------------------------------------------------------------------------

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        self._require_alive()
        return await self._served.load(folder, digest)

    async def unload_adapter(self, digest: str) -> None:
        self._require_alive()
        await self._served.unload(digest)

    async def adapter_states(self) -> list[AdapterState]:
        return await self._served.states()

    # -- requests -------------------------------------------------------------------------------

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
        self._admit(request)
        prepared = await self._prepare(request)
        stream = self._streams[request.request_id] = self._open(request, prepared)
        has_place = self._shares.take(request.tenant)
        assert has_place, "it was admitted in this turn of the loop"
        self._idle.clear()
        if request.digest is not None:
            self._served.pin(request.digest)
        try:
            self._submit(stream)
        except BaseException:
            if self._is_open(stream):
                self._close(stream)
            raise
        try:
            turn = Turn()
            while True:
                event = await turn.take(stream.events)
                if isinstance(event, Exception):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            if self._is_open(stream):
                await self.abort(request.request_id)

    async def _prepare(self, request: GenerationRequest) -> Prepared:
        params = request.params
        bad_words = bad_word_ids(params, self.tokenizer, self.model)
        if params.grammar is None:
            return Prepared(bad_words)
        matcher = await self._grammars.matcher(params.grammar, request.tenant)
        self._admit(request)  # others came and went meanwhile
        return Prepared(bad_words, matcher)

    def _admit(self, request: GenerationRequest) -> None:
        """Refuses what cannot or must not run, before anything is allocated."""
        if self._draining:
            raise EngineBusyError("the server is shutting down", retry_after=5.0)
        self._require_alive()
        if request.request_id in self._streams:
            raise InvalidRequestError(f"request id {request.request_id!r} is in use")
        if request.digest is not None and request.digest not in self._served:
            raise AdapterNotLoadedError(f"adapter {request.digest} is not loaded")
        self._validation.require_valid(request, self.model)
        if not self._shares.has_place(request.tenant):
            held = self._shares.held(request.tenant)
            raise EngineBusyError(f"the queue is full ({held} of your sequences run or wait)")

    def _is_open(self, stream: S) -> bool:
        return self._streams.get(stream.request.request_id) is stream

    def _send(self, stream: S, event: TokenEvent | Exception) -> None:
        """Hands an event to the caller. The last event of a request closes its stream first, so
        that the caller finds nothing left of it."""
        if not self._is_open(stream):
            return
        if isinstance(event, Exception) or event.finish_reason is not None:
            self._close(stream)
        stream.events.put_nowait(event)

    def _fail(self, streams: Iterable[S], error: Exception) -> None:
        for stream in list(streams):
            self._send(stream, error)

    def _close(self, stream: S) -> None:
        del self._streams[stream.request.request_id]
        self._shares.give_back(stream.request.tenant)
        if stream.request.digest is not None:
            self._served.unpin(stream.request.digest)
        if not self._streams:
            self._idle.set()
