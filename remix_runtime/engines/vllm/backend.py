"""vLLM's asynchronous engine, in our words: the only file that uses its public interface."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from vllm import SamplingParams as VllmSamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import StatLoggerBase

from remix_runtime.contracts import (
    GenerationRequest,
    PositionLogprobs,
    SamplingParams,
    TokenLogprob,
)
from remix_runtime.engines.vllm import plugin
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.errors import ConfigError
from remix_runtime.parity import PARITY_SLACK

WORKER_EXTENSION = "remix_runtime.engines.vllm.worker.WorkerExtension"


class Backend:
    """A running vLLM. Its core and its workers are processes of their own."""

    def __init__(self, llm: AsyncLLM, kv_usage: _KVUsage) -> None:
        self._llm = llm
        self._kv_usage = kv_usage

    @classmethod
    async def start(cls, config: VllmConfig) -> Backend:
        """Takes a minute or more. Raises `ConfigError` for what vLLM refuses."""
        plugin.register()
        kv_usage = _KVUsage()

        def build() -> AsyncLLM:
            return AsyncLLM.from_engine_args(_engine_args(config), stat_loggers=[kv_usage.logger])

        try:
            # Not on the event loop, which has probes to answer.
            llm = await asyncio.to_thread(build)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            raise ConfigError(f"vLLM does not start: {error}") from error
        return cls(llm, kv_usage)

    async def stop(self) -> None:
        await asyncio.to_thread(self._llm.shutdown)

    @property
    def hf_config(self) -> Any:
        return self._llm.vllm_config.model_config.hf_config

    @property
    def max_model_len(self) -> int:
        return int(self._llm.vllm_config.model_config.max_model_len)

    @property
    def vocab_size(self) -> int:
        return int(self._llm.vllm_config.model_config.get_vocab_size())

    @property
    def end_token_ids(self) -> frozenset[int]:
        """Of the model's generation config."""
        config = self._llm.vllm_config.model_config.try_get_generation_config()
        ids = config.get("eos_token_id")
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])

    @property
    def parity_slack(self) -> float:
        return PARITY_SLACK[self._llm.vllm_config.model_config.dtype]

    @property
    def kv_tokens(self) -> int:
        cache = self._llm.vllm_config.cache_config
        return int(cache.num_gpu_blocks or 0) * int(cache.block_size)

    @property
    def kv_usage(self) -> float:
        """Of 1, as of the last step."""
        return self._kv_usage.value

    @property
    def death(self) -> str | None:
        """Why it works no more."""
        return str(self._llm.dead_error) if self._llm.errored else None

    async def add_lora(self, name: str, number: int, folder: Path) -> None:
        """Read and checked by every worker; what it raises there, it raises here, as another
        exception with the same text."""
        await self._llm.add_lora(LoRARequest(name, number, str(folder)))

    async def remove_lora(self, number: int) -> None:
        await self._llm.remove_lora(number)

    async def on_workers(self, method: str, *args: Any) -> list[Any]:
        """One result per worker of a method of `worker.WorkerExtension`."""
        results: list[Any] = await self._llm.collective_rpc(method, args=args)
        return results

    def generate(
        self,
        request: GenerationRequest,
        end_token_ids: frozenset[int],
        lora: tuple[str, int, Path] | None,
        salt: str,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs with new tokens only. Closing it aborts the request. `salt`: requests with
        another one share no cached prefix."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if salt:
            prompt["cache_salt"] = salt
        outputs: AsyncGenerator[RequestOutput, None] = self._llm.generate(
            prompt,
            _sampling(request.params, end_token_ids),
            request.request_id,
            lora_request=None if lora is None else LoRARequest(lora[0], lora[1], str(lora[2])),
        )
        return outputs


class _KVUsage:
    """What the scheduler reports with every step."""

    def __init__(self) -> None:
        self.value = 0.0
        usage = self

        class Logger(StatLoggerBase):  # type: ignore[misc]
            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

            def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
                if scheduler_stats is not None:
                    usage.value = float(scheduler_stats.kv_cache_usage)

            def log_engine_initialized(self) -> None: ...

        self.logger = Logger


def _engine_args(config: VllmConfig) -> AsyncEngineArgs:
    args: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "max_num_seqs": config.max_running,
        "max_num_batched_tokens": config.max_tokens_per_step,
        "max_model_len": config.max_model_len,
        "max_logprobs": -1,  # the server has its own limit; the replay of parity wants all
        "enable_lora": True,
        "max_loras": config.adapter_slots,
        "max_cpu_loras": config.host_adapters,
        "max_lora_rank": config.adapter_rows,
        "lora_target_modules": list(config.target_modules) if config.target_modules else None,
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "distributed_executor_backend": config.executor,
        "enforce_eager": config.enforce_eager,
        "worker_extension_cls": WORKER_EXTENSION,
        "trust_remote_code": False,
    }
    if config.gpu_memory_utilization is not None:
        args["gpu_memory_utilization"] = config.gpu_memory_utilization
    known = {item.name for item in dataclasses.fields(AsyncEngineArgs)}
    for name in config.engine_args:
        if name not in known or name in args:
            raise ConfigError(
                f"engine_args: found {name!r}, expected an engine argument of vLLM that has no "
                "setting of its own here"
            )
    return AsyncEngineArgs(**args, **config.engine_args)


def _sampling(params: SamplingParams, end_token_ids: frozenset[int]) -> VllmSamplingParams:
    ends = frozenset() if params.ignore_eos else end_token_ids
    return VllmSamplingParams(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        seed=params.seed,
        # All ends are ours: vLLM's own list is that of its tokenizer.
        ignore_eos=True,
        stop_token_ids=sorted(ends | set(params.stop_token_ids)),
        logit_bias=dict(params.logit_bias) or None,
        logprobs=params.logprobs,
        # Text and stop strings are `remix_runtime.text`'s, as in the embedded engine.
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def logprobs_of(position: Mapping[int, Any], chosen: int, count: int) -> PositionLogprobs:
    """`position`: token id to vLLM's `Logprob`, the chosen token and the most likely ones."""
    ranked = sorted(position.items(), key=lambda item: (item[1].rank, item[0]))
    top = [TokenLogprob(token_id=i, logprob=p.logprob) for i, p in ranked if p.rank <= count]
    return PositionLogprobs(
        chosen=TokenLogprob(token_id=chosen, logprob=position[chosen].logprob),
        top=tuple(top[:count]),
    )
