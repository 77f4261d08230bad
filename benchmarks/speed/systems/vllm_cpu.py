"""vLLM's CPU build, in its own Python environment, its core in the same process.

Standard library and vLLM only: this module runs under another interpreter than the bench.
"""

from __future__ import annotations

import os
import time
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
    """Compiled mode, vLLM's default; prefix caching has no effect on prompts that never repeat."""

    def __init__(self, model: str, max_running: int, max_model_len: int, eager: bool) -> None:
        import torch
        import vllm

        self._llm = vllm.LLM(
            model,
            dtype="float32",
            max_num_seqs=max_running,
            max_model_len=max_model_len,
            enforce_eager=eager,
        )
        self._sampling = vllm.SamplingParams
        self._engine = self._llm.llm_engine
        self._count = 0
        self.about: dict[str, Any] = {
            "version": f"vllm {vllm.__version__}, torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"float32, {'eager' if eager else 'compiled'}, in process, nobind",
        }

    def run(self, workload: Workload) -> Run:
        params = self._sampling(temperature=0.0, max_tokens=workload.new_tokens, ignore_eos=True)
        arrivals: list[list[float]] = [[] for _ in workload.prompts]
        tokens: list[list[int]] = [[] for _ in workload.prompts]
        start, first = time.perf_counter(), self._count
        for prompt in workload.prompts:
            self._engine.add_request(str(self._count), {"prompt_token_ids": prompt}, params)
            self._count += 1
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            now = time.perf_counter() - start
            for output in outputs:
                i = int(output.request_id) - first
                tokens[i] = list(output.outputs[0].token_ids)
                arrivals[i] += [now] * (len(tokens[i]) - len(arrivals[i]))
        return Run(arrivals=arrivals, tokens=tokens)
