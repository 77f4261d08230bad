"""`VllmEngine`: vLLM behind the `Engine` protocol. Requests wait here, in fair order between
tenants, until vLLM has a place for them and its workers hold their adapter."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from llguidance import LLTokenizer

from remix_runtime.base.fingerprint import fingerprint
from remix_runtime.base.model import check_base
from remix_runtime.contracts import GenerationRequest, ModelInfo, Tokenizer
from remix_runtime.engine_state import EngineStats
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.front import STALL_SECONDS, EngineFront, Prepared
from remix_runtime.engines.grammar import model_tokenizer
from remix_runtime.engines.tokenizer import ModelTokenizer
from remix_runtime.engines.vllm.adapters import VllmAdapters
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.job import Job, logprobs_of, prompt_logprobs_of
from remix_runtime.engines.vllm.load import ExpertLoad
from remix_runtime.errors import EngineDeadError, InvalidRequestError, RemixError
from remix_runtime.fairness.queue import FairQueue
from remix_runtime.watch import Watch, Watched

if TYPE_CHECKING:
    from remix_runtime.engines.vllm.backend import Backend  # needs vLLM

log = logging.getLogger(__name__)

LOAD_SECONDS = 10.0
"""Seconds between two questions to the workers about the load of experts."""
LOAD_ANSWER_SECONDS = 60.0
"""Seconds that the workers have for an answer; they give it between two steps."""
LOAD_TASK = "expert load"
"""Name of the watched task."""

PATIENCE = 32
"""How many requests with adapters may pass one whose adapter has no slot; as in the embedded
engine."""


class VllmEngine(EngineFront[Job]):
    """See `contracts.Engine`."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._backend: Backend | None = None
        self._adapters = VllmAdapters(config, self._adapter_read)
        super().__init__(self._adapters, max_requests=config.max_requests)
        self._waiting: FairQueue[Job] = FairQueue()
        self._running: set[Job] = set()
        self._num_admitted = 0
        self._num_looked_for = self._num_found = 0
        """Prompt tokens that were looked for in vLLM's prefix cache, and those that were found."""
        """Requests with adapters that were admitted so far."""
        self._progress = 0.0
        self._load = ExpertLoad()
        self._watch = Watch()

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        from remix_runtime.engines.vllm.backend import Backend

        folder = str(await asyncio.to_thread(check_base, self._config.model))
        self._tokenizer = ModelTokenizer(folder)
        backend = await Backend.start(replace(self._config, model=folder))
        self._ends = backend.end_token_ids
        if self._tokenizer.eos_token_id is not None:
            self._ends |= {self._tokenizer.eos_token_id}
        self._model = ModelInfo(
            name=self._config.served_model_name or Path(self._config.model).name,
            max_model_len=backend.max_model_len,
            vocab_size=backend.vocab_size,
            eos_token_ids=tuple(sorted(self._ends)),
            max_requests=self._config.max_requests,
            fingerprint=await asyncio.to_thread(fingerprint, Path(folder)),
        )
        self._adapters.start(backend)
        self._backend = backend
        self._watch.start(
            LOAD_TASK,
            partial(self._watch_load, backend),
            what="asking the workers for the load of experts",
            due_seconds=LOAD_ANSWER_SECONDS,
            ends=True,
        )

    async def _shut_down(self) -> None:
        await self._adapters.settle(STALL_SECONDS)
        await self._watch.stop()
        backend, self._backend = self._backend, None
        if backend is not None:
            await backend.stop()

    @property
    def model(self) -> ModelInfo:
        self._require_alive()
        return self._model

    @property
    def tokenizer(self) -> Tokenizer:
        self._require_alive()
        return self._tokenizer

    @property
    def _is_started(self) -> bool:
        return self._backend is not None

    @property
    def _death(self) -> str | None:
        return None if self._backend is None else self._backend.death

    @property
    def _busy_since(self) -> float | None:
        return self._progress if self._running else None

    @property
    def _failing(self) -> tuple[str, ...]:
        return self._watch.failing

    async def _watch_load(self, backend: Backend, task: Watched) -> None:
        """Asks the workers now and then for the load of experts, if there were requests with
        adapters."""
        seen = 0
        with contextlib.suppress(EngineDeadError):
            while True:
                if self._num_admitted != seen or self._running:
                    seen = self._num_admitted
                    parts = await backend.on_workers("remix_expert_load")
                    self._load.add(parts, self._adapters.numbers, self._adapters.digests)
                await task.rest(LOAD_SECONDS)

    async def unload_adapter(self, digest: str) -> None:
        await super().unload_adapter(digest)
        if self._adapters.info(digest) is None:  # else it was loaded again meanwhile
            self._load.forget(digest)

    # -- requests -----------------------------------------------------------------------------

    def _grammar_tokenizer(self) -> LLTokenizer:
        return model_tokenizer(self._tokenizer.own, self._model)

    def _open(self, request: GenerationRequest, prepared: Prepared) -> Job:
        # vLLM has no request for no token: it draws one, which is dropped.
        self._model.require_room(len(request.prompt_token_ids), 1)
        completion = Completion(request, self._tokenizer, self._ends, prepared.matcher)
        return Job(request, prepared, completion)

    def _submit(self, stream: Job) -> None:
        self._waiting.add(stream.request.tenant, stream)
        self._pump()

    async def abort(self, request_id: str) -> None:
        job = self._streams.get(request_id)
        if job is None:
            return
        self._send(job, job.completion.abort())
        if job.run is not None:
            job.run.cancel()
            await asyncio.wait([job.run])
        self._pump()

    def stats(self) -> EngineStats:
        backend = self._backend
        if backend is None:
            return EngineStats()
        # Without requests the scheduler reports nothing more, and holds nothing but its cache.
        used = backend.kv_usage if self._running else 0.0
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_tokens_used=round(used * backend.kv_tokens),
            kv_tokens_total=backend.kv_tokens,
            # Whatever the workers load they put into a slot at once.
            prefix_cache_queries=self._num_looked_for,
            prefix_cache_hits=self._num_found,
            adapter_slots_used=min(self._adapters.num_held, self._config.adapter_slots),
            adapter_slots_total=self._config.adapter_slots,
            adapters_loaded=len(self._adapters),
            adapters_on_host=self._adapters.num_held,
            adapter_reads=self._adapters.num_reads,
            adapter_read_seconds=self._adapters.total_read_seconds,
        )

    def expert_load(self, digest: str) -> Mapping[str, tuple[int, ...]]:
        info = self._adapters.info(digest)
        if info is None:
            return {}
        # Workers count up to the last expert that they have seen.
        return {
            module: counts + (0,) * (info.num_experts - len(counts))
            for module, counts in self._load.totals.get(digest, {}).items()
        }

    # -- from the queue to vLLM -----------------------------------------------------------------

    def _pump(self) -> None:
        """Admits the requests that may run now; if the engine is dead, fails those that wait."""
        try:
            if self._streams:
                self._require_alive()
            while len(self._running) < self._config.max_running and (job := self._next()):
                self._waiting.remove(job.request.tenant, job)
                self._start(job)
        except EngineDeadError as error:
            self._fail([job for _, job in self._waiting], error)

    def _next(self) -> Job | None:
        """The first request in fair order that may run now. One whose adapter must be read, or
        finds no slot, lets others pass for a while."""
        adapters, is_closed = self._adapters, self._adapters.needs_room
        for _, job in self._waiting:
            digest = job.request.digest
            if digest is None:
                return job
            has_slot, is_held = adapters.has_slot(digest), adapters.is_held(digest)
            if is_held and has_slot and not is_closed:
                return job
            if not is_held and (has_slot or adapters.has_room):
                adapters.read(digest)
            if job.turn_came is None:
                job.turn_came = self._num_admitted
            if not has_slot and self._num_admitted - job.turn_came >= PATIENCE:
                is_closed = True  # until the requests of an adapter in a slot have run out
        return None

    def _start(self, job: Job) -> None:
        request = job.request
        self._waiting.charge_prompt(request.tenant, len(request.prompt_token_ids))
        request.meter.prompt_tokens = len(request.prompt_token_ids)
        self._running.add(job)
        self._progress = time.monotonic()
        job.completion.scheduled()
        lora = None
        if request.digest is not None:
            lora = self._adapters.pin_slot(request.digest)
            self._num_admitted += 1
        job.run = asyncio.get_running_loop().create_task(self._run(job, lora))
        # Not in the task, which may be cancelled before its first line.
        job.run.add_done_callback(lambda _: self._ended(job))

    async def _run(self, job: Job, lora: tuple[str, int, Path] | None) -> None:
        request = job.request
        assert self._backend is not None
        owner = [request.tenant, request.cache_salt]
        salt = json.dumps(owner) if any(owner) else ""
        outputs = self._backend.generate(request, self._ends, lora, salt=salt)
        try:
            async for new in outputs:
                self._progress = time.monotonic()
                self._waiting.charge_output(request.tenant, len(new.token_ids))
                params = request.params
                if new.cached_tokens is not None:
                    job.completion.prompt_cached(new.cached_tokens)
                    self._num_looked_for += len(request.prompt_token_ids)
                    self._num_found += new.cached_tokens
                asked = params.prompt_logprobs
                scores = prompt_logprobs_of(new, request.prompt_token_ids, asked)
                if scores is not None:
                    job.completion.prompt_scored(scores)
                if params.max_tokens:
                    request.meter.output_tokens += len(new.token_ids)
                    logprobs = logprobs_of(new, params.logprobs)
                    event = job.completion.take(new.token_ids, logprobs)
                else:
                    event = job.completion.take(())
                self._send(job, event)
                if event.finish_reason is not None:
                    break
            else:
                raise RemixError("vLLM ended the request before its time")
        except (EngineDeadError, InvalidRequestError) as error:
            self._send(job, error)
        except Exception as error:
            log.exception("request %s failed", request.request_id)
            message = f"the engine could not compute this request: {type(error).__name__}"
            self._send(job, RemixError(message))
        finally:
            await outputs.aclose()  # a request that ended before vLLM knows of it is aborted there

    def _ended(self, job: Job) -> None:
        self._running.discard(job)
        if job.request.digest is not None:
            self._adapters.unpin_slot(job.request.digest)
        self._pump()

    def _close(self, stream: Job) -> None:
        self._waiting.remove(stream.request.tenant, stream)
        super()._close(stream)

    def _adapter_read(self, digest: str, error: RemixError | None) -> None:
        if error is not None:
            self._fail([job for _, job in self._waiting if job.request.digest == digest], error)
        self._pump()
