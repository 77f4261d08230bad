"""The memory-bandwidth roofline: how often a second the model's float32 bytes can be read.

At batch 1 every weight is read once per token, so no float32 engine can be faster. Measured as
a workload like any other: one "token" is one read of a buffer of that many bytes with all
threads, in huge pages like the engine's weights. The read kernel that proves fastest at start-up
is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.systems.protocol import Run, Workload
from remix_runtime.kernels import huge_pages


class RooflineSystem:
    def __init__(self, bytes_per_token: int, threads: int) -> None:
        torch.set_num_threads(threads)
        self._buffer = huge_pages.zeros(bytes_per_token // 4).fill_(1.0)
        seconds = {name: self._best_seconds(name) for name in _READS}
        self._read = min(seconds, key=seconds.__getitem__)
        self.about: dict[str, Any] = {
            "version": f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"{bytes_per_token / 1e6:.0f} MB per token, read by {self._read}",
            "gigabytes_per_second": {
                name: round(bytes_per_token / s / 1e9, 2) for name, s in seconds.items()
            },
        }

    def run(self, workload: Workload) -> Run:
        start = time.perf_counter()
        row = []
        for _ in range(workload.new_tokens):
            _READS[self._read](self._buffer)
            row.append(time.perf_counter() - start)
        return Run(arrivals=[row], tokens=[[]])

    def _best_seconds(self, name: str) -> float:
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            _READS[name](self._buffer)
            best = min(best, time.perf_counter() - start)
        return best


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm


def _integer_sum(x: Tensor) -> Tensor:
    return x.view(torch.int32).sum(dtype=torch.int32)


_READS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "largest": torch.amax,
    "norm": _norm,
    "integer sum": _integer_sum,
}
