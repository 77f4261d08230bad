"""The memory-bandwidth roofline: how often a second the model's bytes can be read.

At batch 1 every weight is read once per token, and the keys and values of all tokens before it, so
no engine with weights of that type can be faster. Measured as a workload like any other: one
"token" is one read of a buffer of that many bytes with all threads, in huge pages like the engine's
weights. The read kernel that proves fastest at start-up is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.rounds import fastest
from benchmarks.speed.systems.protocol import Run, Workload
from remix_runtime.kernels import huge_pages

_MOST_TOKENS = 1024
_READS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "largest": torch.amax,
    "norm": torch.linalg.vector_norm,
    "integer sum": lambda buffer: torch.sum(buffer.view(torch.int32), dtype=torch.int32),
}


class RooflineSystem:
    """`bytes_per_token`: of the weights; `kv_bytes`: of the keys and values of one token."""

    def __init__(self, bytes_per_token: int, kv_bytes: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._weights, self._kv = bytes_per_token // 4, kv_bytes // 4
        self._buffer = huge_pages.zeros(self._weights + self._kv * _MOST_TOKENS).fill_(1.0)
        weights = self._buffer[: self._weights]
        calls = [partial(read, weights) for read in _READS.values()]
        seconds = dict(zip(_READS, fastest(calls, rounds=8), strict=True))
        name = min(seconds, key=seconds.__getitem__)
        self._read = _READS[name]
        self.about: dict[str, Any] = {
            "version": f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"{bytes_per_token / 1e6:.0f} MB per token, read by {name}",
            "gigabytes_per_second": {
                name: round(bytes_per_token / s / 1e9, 2) for name, s in seconds.items()
            },
        }

    def run(self, workload: Workload) -> Run:
        (prompt,) = workload.prompts
        start = time.perf_counter()
        row = []
        for number in range(workload.new_tokens):
            self._read(self._buffer[: self._weights + self._kv * (len(prompt) + number)])
            row.append(time.perf_counter() - start)
        return Run(arrivals=[row], tokens=[[]])
