"""`RayEngine`: replicas of another engine behind the `Engine` protocol. Requests wait here, in fair
order between tenants, until a replica has a place for them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer

from remix_runtime.base.model import check_base
from remix_runtime.contracts import (
    FinishReason,
    GenerationRequest,
    ModelInfo,
    TokenEvent,
    Tokenizer,
)
from remix_runtime.engine_state import EngineStats, Health
from remix_runtime.engines.by_name import Text, text_of
from remix_runtime.engines.config import EngineConfig, FrontConfig
from remix_runtime.engines.front import STALL_SECONDS, EngineFront, Prepared, Stream
from remix_runtime.engines.ray.adapters import RayAdapters
from remix_runtime.engines.ray.cluster import Cluster
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.fleet import Fleet
from remix_runtime.engines.ray.messages import Accepted, Ended, Events, Message, Settings, Wanted
from remix_runtime.engines.ray.placement import Placement, register
from remix_runtime.errors import EngineDeadError, ReplicaLostError
from remix_runtime.fairness.queue import FairQueue
from remix_runtime.watch import Watch, Watched

REPORT_SECONDS = 2.0
"""Seconds between two questions to the replicas."""
REPORT_TASK = "replicas"
"""Name of the watched task."""
ACCEPT_SECONDS = 1.0
"""Seconds in which a replica accepts a request that is aborted on its way there."""
ABORT_SECONDS = 5.0
"""Seconds in which a replica tells how far an aborted request has come."""


class Job(Stream):
    """A request, and where it is."""

    def __init__(self, request: GenerationRequest, prepared: Prepared) -> None:
        super().__init__(request, prepared)
        self.arrived = self.sent = time.monotonic()
        self.replica: str | None = None
        self.accepted = asyncio.Event()
        """Set with the replica."""
        self.has_told = False
        """Whether an event of it has come."""
        self.ended = asyncio.Event()
        self.run: asyncio.Task[None] | None = None
        """From the moment it is sent."""


class RayEngine(EngineFront[Job]):
    """See `contracts.Engine`."""

    def __init__(self, config: RayConfig, inner: FrontConfig) -> None:
        self._config = config
        self._inner = inner
        options = asdict(inner)
        if isinstance(inner, EngineConfig) and Path(inner.model).is_dir():
            options["model"] = str(Path(inner.model).absolute())
        # The server refuses what is too much; its replicas take all that it sends.
        options["max_waiting"] = max(inner.max_waiting, inner.max_running + 2)
        self._placement = Placement(
            places=inner.max_running,
            adapters=config.replica_adapters,
            on_change=self._replicas_changed,
        )
        self._cluster = Cluster(
            config,
            Settings(engine=config.engine_of, options=options, adapters=config.replica_adapters),
            places=inner.max_running,
            gpus=_gpus(config, options),
        )
        self._fleet = Fleet(self._placement)
        self._adapters = RayAdapters(self._cluster, self._fleet)
        self._max_sent = inner.max_running * config.most_replicas
        super().__init__(self._adapters, max_requests=inner.max_requests * config.most_replicas)
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: set[Job] = set()
        self._text: Text | None = None
        self._model: ModelInfo | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._heard = 0.0
        """When a replica last said anything, on the monotonic clock."""
        self._watch = Watch()

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        folder = None
        if isinstance(self._inner, EngineConfig):
            folder = str(await asyncio.to_thread(check_base, self._inner.model))
        self._text = await asyncio.to_thread(text_of, self._config.engine_of, folder)
        register(self._config.ray_app, self._placement)
        found = await self._cluster.start()
        self._model = replace(
            found.model, max_requests=self._inner.max_requests * self._config.most_replicas
        )
        reports = await self._cluster.reports()
        self._placement.set_replicas([report.replica for report in reports])
        for report in reports:
            self._fleet.take(report)
        self._watch.start(
            REPORT_TASK,
            self._ask_for_ever,
            what="asking the replicas",
            due_seconds=STALL_SECONDS * 2,
        )

    async def _shut_down(self) -> None:
        await self._adapters.settle(STALL_SECONDS)
        await self._watch.stop()
        self._model = None
        await self._cluster.stop()

    @property
    def model(self) -> ModelInfo:
        self._require_alive()
        assert self._model is not None
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        self._require_alive()
        assert self._text is not None
        return self._text.tokenizer

    @property
    def _is_started(self) -> bool:
        return self._model is not None

    @property
    def _death(self) -> str | None:
        return None  # Ray makes new replicas

    @property
    def _busy_since(self) -> float | None:
        return None  # each replica tells of its own engine, and Ray replaces one that hangs

    @property
    def _failing(self) -> tuple[str, ...]:
        return self._watch.failing

    def health(self) -> Health:
        health = super().health()
        if health.ready and not any(report.health.ready for report in self._fleet.heard):
            return replace(health, ready=False, reason="no replica is ready")
        return health

    async def _ask_for_ever(self, task: Watched) -> None:
        while True:
            await self._ask()
            await task.rest(REPORT_SECONDS)

    async def _ask(self) -> None:
        for report in await self._cluster.reports():
            self._fleet.take(report)

    def _replicas_changed(self) -> None:
        """Called in Ray's thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing waits
                self._loop.call_soon_threadsafe(self._pump)

    # -- requests -------------------------------------------------------------------------------

    def _grammar_tokenizer(self) -> LLTokenizer:
        assert self._text is not None
        return self._text.grammar_tokenizer(self.model)

    def _open(self, request: GenerationRequest, prepared: Prepared) -> Job:
        return Job(request, prepared)

    def _submit(self, stream: Job) -> None:
        self._waiting.add(stream.request.tenant, stream)
        self._pump()

    async def abort(self, request_id: str) -> None:
        job = self._streams.get(request_id)
        if job is None:
            return
        if job.run is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job.accepted.wait(), ACCEPT_SECONDS)
        if job.replica is not None:
            # The last event says how far the request has come, for whoever charges for it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ABORT_SECONDS):
                    await self._cluster.abort(request_id)
                    await job.ended.wait()
        self._send(job, TokenEvent(token_ids=(), text="", finish_reason=FinishReason.ABORT))

    def stats(self) -> EngineStats:
        running = sum(job.has_told for job in self._running)
        return self._fleet.stats(
            EngineStats(
                running=running,
                waiting=len(self._streams) - running,
                adapters_loaded=len(self._adapters),
                adapter_reads=self._adapters.num_reads,
                adapter_read_seconds=self._adapters.total_read_seconds,
                replicas_wanted=self._config.replicas,
            )
        )

    def expert_load(self, digest: str) -> Mapping[str, tuple[int, ...]]:
        return self._fleet.expert_load(digest) if digest in self._adapters else {}

    # -- from the queue to a replica --------------------------------------------------------------

    def _pump(self) -> None:
        while len(self._waiting) and len(self._running) < self._max_sent:
            tenant, job = next(iter(self._waiting))
            self._waiting.remove(tenant, job)
            self._waiting.charge_prompt(tenant, len(job.request.prompt_token_ids))
            self._running.add(job)
            job.run = asyncio.get_running_loop().create_task(self._run(job))

    async def _run(self, job: Job) -> None:
        """Sends the request, and once more where its replica is lost before it has told
        anything."""
        request_id = job.request.request_id
        try:
            for is_last in (False, True):
                self._placement.send(request_id)
                job.sent = time.monotonic()
                try:
                    await self._follow(job)
                    return
                except (ReplicaLostError, EngineDeadError) as error:
                    self._placement.release(request_id)
                    job.replica = None
                    job.accepted.clear()
                    if is_last or job.has_told:
                        raise ReplicaLostError(str(error)) from error
        except Exception as error:
            self._send(job, error)

    async def _follow(self, job: Job) -> None:
        request = job.request
        async with contextlib.aclosing(self._cluster.messages(request)) as messages:
            async for message in messages:
                await self._take(job, message)
                if not self._is_open(job):
                    return
        raise ReplicaLostError("the replica ended the request before its time")

    async def _take(self, job: Job, message: Message) -> None:
        digest = job.request.digest
        match message:
            case Accepted():
                job.replica = message.replica
                job.accepted.set()
                if digest is not None:
                    self._fleet.count(digest, found=message.found)
            case Wanted(round=number):
                assert digest is not None
                assert job.replica is not None
                await self._adapters.deliver(digest, job.replica, number)
            case Events():
                self._tell(job, message)
            case Ended():
                self._fleet.take(message.report)
                if digest is not None:
                    assert job.replica is not None
                    self._fleet.take_load(job.replica, digest, message.load)
                if isinstance(message.error, EngineDeadError):
                    raise message.error
                if message.error is not None:
                    self._send(job, message.error)
                elif message.last is not None:
                    self._tell(job, message.last)

    def _tell(self, job: Job, message: Events) -> None:
        meter = job.request.meter
        new = message.output_tokens - meter.output_tokens
        meter.prompt_tokens, meter.output_tokens = message.prompt_tokens, message.output_tokens
        if new > 0:
            self._waiting.charge_output(job.request.tenant, new)
        for event in message.events:
            if event.queue_seconds is not None:
                waited = event.queue_seconds + (job.sent - job.arrived)
                event = replace(event, queue_seconds=waited)
            job.has_told = True
            self._send(job, event)

    def _close(self, stream: Job) -> None:
        super()._close(stream)
        stream.accepted.set()
        stream.ended.set()
        self._placement.release(stream.request.request_id)
        self._waiting.remove(stream.request.tenant, stream)
        self._running.discard(stream)
        if stream.run is not None and stream.run is not asyncio.current_task():
            stream.run.cancel()
        self._pump()


def _gpus(config: RayConfig, options: Mapping[str, Any]) -> float:
    """GPUs of a replica: as given, or as the engine's own options ask for."""
    if config.replica_gpus is not None:
        return config.replica_gpus
    if config.engine_of == "vllm":
        return float(options["tensor_parallel_size"] * options["pipeline_parallel_size"])
    return 1.0 if options.get("device") == "cuda" else 0.0
