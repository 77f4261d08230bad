"""vLLM as the tests run it: on the CPU, small."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from remix_runtime.contracts import Engine

# Read by vLLM at import, and by the processes that it starts.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def vllm_engine(base: Path, **settings: Any) -> Engine:
    from remix_runtime.engines.vllm.config import VllmConfig
    from remix_runtime.engines.vllm.engine import VllmEngine

    return VllmEngine(
        VllmConfig(
            model=str(base), dtype="float32", adapter_rows=64, enforce_eager=True, **settings
        )
    )
