"""`EmbeddedEngine`: the engine's face on the event loop. Its core runs in a thread of its own
(`thread.py`); the adapters and their folders are `adapters.py`."""

from __future__ import annotations

from collections.abc import Mapping

from llguidance import LLTokenizer

from remix_runtime.contracts import GenerationRequest, ModelInfo, Tokenizer
from remix_runtime.engine_state import EngineStats
from remix_runtime.engines.embedded.adapters import EmbeddedAdapters
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.core import Output
from remix_runtime.engines.embedded.thread import EngineThread
from remix_runtime.engines.front import STALL_SECONDS, EngineFront, Prepared, Stream
from remix_runtime.engines.grammar import model_tokenizer
from remix_runtime.errors import EngineDeadError


class EmbeddedEngine(EngineFront[Stream]):
    """Serves one model and many adapters from this process. See `contracts.Engine`."""

    def __init__(self, config: EmbeddedConfig) -> None:
        self._config = config
        self._thread = EngineThread(
            config, on_outputs=self._deliver, on_read=self._read, on_death=self._die
        )
        self._adapters = EmbeddedAdapters(self._thread)
        super().__init__(self._adapters, max_requests=config.max_requests)

    # -- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._thread.start()

    async def _shut_down(self) -> None:
        await self._thread.stop(STALL_SECONDS)
        await self._adapters.settle(STALL_SECONDS)

    @property
    def model(self) -> ModelInfo:
        return self._thread.running_core().runner.model

    @property
    def tokenizer(self) -> Tokenizer:
        return self._thread.running_core().runner.tokenizer

    @property
    def _is_started(self) -> bool:
        return self._thread.is_started

    @property
    def _death(self) -> str | None:
        return None if self._thread.death is None else str(self._thread.death)

    @property
    def _busy_since(self) -> float | None:
        return self._thread.busy_since

    # -- requests -----------------------------------------------------------------------------

    def _grammar_tokenizer(self) -> LLTokenizer:
        runner = self._thread.running_core().runner
        return model_tokenizer(runner.tokenizer.own, runner.model)

    def _open(self, request: GenerationRequest, prepared: Prepared) -> Stream:
        return Stream(request, prepared)

    def _submit(self, stream: Stream) -> None:
        core = self._thread.running_core()
        self._thread.post(lambda: core.add(stream.request, stream.prepared))

    async def abort(self, request_id: str) -> None:
        core = self._thread.core
        if core is not None:
            self._thread.post(lambda: core.abort(request_id))

    def stats(self) -> EngineStats:
        core = self._thread.core
        if core is None:
            return EngineStats(adapters_loaded=len(self._adapters))
        pool, running = core.scheduler.pool, len(core.scheduler.running)
        return EngineStats(
            running=running,
            waiting=max(0, len(self._streams) - running),
            kv_tokens_used=(pool.num_pages - pool.num_free) * pool.page_tokens,
            kv_tokens_total=pool.num_pages * pool.page_tokens,
            tokens_proposed=core.num_proposed,
            tokens_accepted=core.num_accepted,
            kv_tokens_cached=pool.num_idle * pool.page_tokens,
            prefix_cache_queries=core.scheduler.num_looked_for,
            prefix_cache_hits=core.scheduler.num_found,
            preemptions=core.scheduler.num_preemptions,
            adapter_slots_used=core.bank.slots_used,
            adapter_slots_total=core.bank.num_slots,
            adapter_slot_fills=core.bank.slot_fills,
            adapter_slot_fill_seconds=core.bank.slot_fill_seconds,
            adapters_loaded=len(self._adapters),
            adapters_on_host=core.bank.host_count,
            adapter_reads=self._adapters.num_reads,
            adapter_read_seconds=self._adapters.total_read_seconds,
            device_adapter_bytes_used=core.bank.device_bytes_used,
            device_adapter_bytes_total=self._config.adapter_bytes,
            host_adapter_bytes_used=core.bank.host_bytes_used,
            host_adapter_bytes_total=self._config.host_adapter_bytes,
        )

    def expert_load(self, digest: str) -> Mapping[str, tuple[int, ...]]:
        core = self._thread.core
        return {} if core is None else core.bank.expert_load(digest)

    # -- called by the thread, on the event loop ----------------------------------------------

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                self._send(stream, output.event)

    def _read(self, digest: str) -> None:
        self._adapters.read(digest)

    def _die(self) -> None:
        self._fail(self._streams.values(), EngineDeadError(f"the engine stopped: {self._death}"))
