"""The memory-bandwidth roofline: how often a second the model's bytes can be read.

At batch 1 every weight is read once per token, so no engine with weights of that type can be
faster. Measured as a workload like any other: one "token" is one read of a buffer of that many
bytes with all threads, in huge pages like the engine's weights. The read kernel that proves fastest
at start-up is used.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from benchmarks.rounds import fastest
from benchmarks.speed.systems.protocol import Run, Workload
from remix_runtime.kernels import huge_pages


class RooflineSystem:
    def __init__(self, bytes_per_token: int, threads: int) -> None:
        torch.set_num_threads(threads)
        buffer = huge_pages.zeros(bytes_per_token // 4).fill_(1.0)
        reads = {
            "sum": partial(torch.sum, buffer),
            "largest": partial(torch.amax, buffer),
            "norm": partial(torch.linalg.vector_norm, buffer),
            "integer sum": partial(torch.sum, buffer.view(torch.int32), dtype=torch.int32),
        }
        seconds = dict(zip(reads, fastest(list(reads.values()), rounds=8), strict=True))
        name = min(seconds, key=seconds.__getitem__)
        self._read = reads[name]
        self.about: dict[str, Any] = {
            "version": f"torch {torch.__version__}",
            "threads": torch.get_num_threads(),
            "settings": f"{bytes_per_token / 1e6:.0f} MB per token, read by {name}",
            "gigabytes_per_second": {
                name: round(bytes_per_token / s / 1e9, 2) for name, s in seconds.items()
            },
        }

    def run(self, workload: Workload) -> Run:
        start = time.perf_counter()
        row = []
        for _ in range(workload.new_tokens):
            self._read()
            row.append(time.perf_counter() - start)
        return Run(arrivals=[row], tokens=[[]])
