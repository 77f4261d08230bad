"""Wraps vLLM's asynchronous engine. The only file that uses vLLM's public interface."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncGenerator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from vllm import SamplingParams as VllmSamplingParams
from vllm.config import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from remix_runtime.adapter.parity import PARITY_SLACK
from remix_runtime.contracts import GenerationRequest, Grammar, GrammarKind, SamplingParams
from remix_runtime.engines.grammar import json_schema_text, lark_text
from remix_runtime.engines.vllm import plugin
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.job import NewTokens
from remix_runtime.errors import (
    CheckpointError,
    ConfigError,
    EngineDeadError,
    InvalidRequestError,
    RemixError,
)

T = TypeVar("T")

WORKER_EXTENSION = "remix_runtime.engines.vllm.worker.WorkerExtension"

_LOOK_SECONDS = 0.5
"""Seconds between two checks that the core, whose answer is waited for, is alive."""

_WRAPPED = re.compile(
    r"(?:Call to \w+ method failed: )?(?:Worker failed with error '(.*)', please check .*|(.*))",
    re.DOTALL,
)


class Backend:
    """A running vLLM. Its core and its workers are processes of their own."""

    def __init__(self, llm: AsyncLLM, kv_usage: _KVUsage) -> None:
        self._llm = llm
        self._kv_usage = kv_usage

    @classmethod
    async def start(cls, config: VllmConfig) -> Backend:
        """Takes a minute or more. Raises `ConfigError` for what vLLM refuses."""
        if not current_platform.device_type:
            raise ConfigError(
                "engine: found vllm, which sees no GPU here, expected one with its driver "
                "(nvidia-smi shows it; in a container: --gpus all)"
            )
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
        """The end tokens of the model's generation config."""
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
        """The share of the KV cache that was in use at the last step, from 0 to 1."""
        return self._kv_usage.value

    @property
    def death(self) -> str | None:
        """Why vLLM works no more; None while it does."""
        return str(self._llm.dead_error) if self._llm.errored else None

    async def add_lora(self, name: str, number: int, folder: Path) -> None:
        """Makes every worker read and check an adapter. Raises `CheckpointError` with what one of
        them said; then none of them holds it."""
        try:
            await self._answer(self._llm.add_lora(LoRARequest(name, number, str(folder))))
        except EngineDeadError:
            raise
        except RemixError as error:
            # Others of the workers may have it.
            await self.remove_lora(number)
            raise CheckpointError(f"{folder}: {error}") from error

    async def remove_lora(self, number: int) -> None:
        await self._answer(self._llm.remove_lora(number))

    async def on_workers(self, method: str, *args: Any) -> list[Any]:
        """Calls a method of `worker.WorkerExtension` on every worker. Returns one result per
        worker."""
        results: list[Any] = await self._answer(self._llm.collective_rpc(method, args=args))
        return results

    async def generate(
        self,
        request: GenerationRequest,
        end_token_ids: frozenset[int],
        lora: tuple[str, int, Path] | None,
        salt: str,
    ) -> AsyncGenerator[NewTokens, None]:
        """Runs a request. Closing the generator aborts it. `salt`: requests with different salts
        share no cached prefix. Raises `EngineDeadError`, and `InvalidRequestError` for what vLLM
        alone refuses."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.prompt_token_ids)}
        if salt:
            prompt["cache_salt"] = salt
        outputs = self._llm.generate(
            prompt,
            _sampling(request.params, end_token_ids),
            request.request_id,
            lora_request=None if lora is None else LoRARequest(lora[0], lora[1], str(lora[2])),
        )
        scores, is_first = None, True
        try:
            async for output in outputs:
                (choice,) = output.outputs
                scores = output.prompt_logprobs or scores
                if choice.token_ids:
                    cached = output.num_cached_tokens if is_first else None
                    yield NewTokens(choice.token_ids, choice.logprobs, scores, cached)
                    scores, is_first = None, False
        except VllmDeadError as error:
            raise EngineDeadError(f"the engine stopped: {error}") from None
        except VLLMValidationError as error:
            param = None if request.params.grammar is None else "response_format"
            raise InvalidRequestError(f"vLLM refuses the request: {error}", param=param) from None
        finally:
            await outputs.aclose()

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        """Waits for a call to vLLM, which leaves it open if its core dies first. Raises
        `EngineDeadError`."""
        task = asyncio.ensure_future(call)
        try:
            while not task.done():
                if death := self.death:
                    raise EngineDeadError(f"the engine stopped: {death}")
                await asyncio.wait([task], timeout=_LOOK_SECONDS)
            return task.result()
        except VllmDeadError as error:
            raise EngineDeadError(f"the engine stopped: {error}") from None
        except RemixError:
            raise
        except Exception as error:
            raise RemixError(worker_words(str(error))) from error
        finally:
            task.cancel()


def worker_words(text: str) -> str:
    """What a worker said, without what vLLM's core and its executor put around it."""
    found = _WRAPPED.fullmatch(text)
    assert found is not None, "its last part matches anything"
    return found[1] or found[2]


class _KVUsage:
    """Keeps the KV usage that the scheduler reports with every step."""

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
        "max_logprobs": -1,  # the server has its own limit; the replay of parity wants many
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
        "structured_outputs_config": StructuredOutputsConfig(backend="guidance"),
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
    # After the end that a grammar allows vLLM would go on without the grammar.
    ends = frozenset() if params.ignore_eos and params.grammar is None else end_token_ids
    return VllmSamplingParams(
        max_tokens=max(params.max_tokens, 1),
        min_tokens=params.min_tokens,
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
        allowed_token_ids=list(params.allowed_token_ids) or None,
        bad_words=list(params.bad_words) or None,
        structured_outputs=_structured(params.grammar),
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        # Text and stop strings are `remix_runtime.engines.text`'s, as in the embedded engine.
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _structured(grammar: Grammar | None) -> StructuredOutputsParams | None:
    if grammar is None:
        return None
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return StructuredOutputsParams(json=json_schema_text(grammar.text))
        case GrammarKind.REGEX:
            return StructuredOutputsParams(regex=grammar.text)
        case GrammarKind.LARK:
            return StructuredOutputsParams(grammar=lark_text(grammar.text))
