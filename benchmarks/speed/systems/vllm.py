"""vLLM, its core in the same process.

Standard library and vLLM only, but for ReMix: it may run under another interpreter than the bench.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.speed.systems.protocol import Run, Workload

# Read by vLLM at import. One process; threads stay where the operating system puts them,
# because the automatic binding leaves cores unused on small machines.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


class VllmSystem:
    """`engine` are arguments of `vllm.LLM`; `adapters` are folders, of vLLM's own LoRA or, with
    `remix`, of ReMix, on the feed-forward linears. With `cpu_time` tokens arrive on the clock of
    the process's CPU time, which other processes disturb least."""

    def __init__(
        self,
        model: str,
        engine: dict[str, Any],
        adapters: tuple[str, ...] = (),
        lora_rank: int = 0,
        lora_slots: int = 0,
        remix: bool = False,
        cpu_time: bool = False,
    ) -> None:
        import torch
        import vllm
        from vllm.lora.request import LoRARequest

        if remix:
            from remix_runtime.engines.vllm import plugin

            plugin.register()
        if lora_slots:
            engine = {
                **engine,
                "enable_lora": True,
                "max_loras": lora_slots,
                "max_cpu_loras": max(lora_slots, len(adapters)),
                "max_lora_rank": next(r for r in (8, 16, 32, 64, 128) if r >= lora_rank),
                "lora_target_modules": ["gate_up_proj", "down_proj"],
            }
        self._llm = vllm.LLM(model, **engine)
        self._loras = [LoRARequest(f"a{i}", i, f) for i, f in enumerate(adapters, start=1)]
        self._params = partial(
            vllm.SamplingParams,
            temperature=0.0,
            ignore_eos=True,
            detokenize=not engine.get("skip_tokenizer_init"),
        )
        self._clock = time.process_time if cpu_time else time.perf_counter
        self._wait: Callable[[], object] = (
            torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        )
        self._count = 0
        settings = ", ".join(f"{name} {value}" for name, value in engine.items())
        self.about: dict[str, Any] = {
            "version": f"vllm {vllm.__version__}, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"{settings}, in process, nobind",
        }

    def run(self, workload: Workload) -> Run:
        engine, params = self._llm.llm_engine, self._params(max_tokens=workload.new_tokens)
        arrivals: list[list[float]] = [[] for _ in workload.prompts]
        tokens: list[list[int]] = [[] for _ in workload.prompts]
        start, first = self._clock(), self._count
        for prompt, adapter in zip(workload.prompts, workload.adapters, strict=True):
            lora = None if adapter is None else self._loras[adapter]
            body = {"prompt_token_ids": prompt}
            engine.add_request(str(self._count), body, params, lora_request=lora)
            self._count += 1
        while engine.has_unfinished_requests():
            outputs = engine.step()
            self._wait()
            now = self._clock() - start
            for output in outputs:
                i = int(output.request_id) - first
                tokens[i] = list(output.outputs[0].token_ids)
                arrivals[i] += [now] * (len(tokens[i]) - len(arrivals[i]))
        return Run(arrivals=arrivals, tokens=tokens)
