"""Compiles the Triton kernels for an H100 on a machine without a GPU, and says what they take.

`python tests/unit/kernels/compile_triton.py` runs the operators on CPU tensors with a driver that
only compiles, so that the specialisations are those of a real step. The interpreter, which the
other tests use, accepts much that the compiler refuses.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.kernels import triton_launch
from remix_runtime.kernels.mixture import MixtureWeights
from remix_runtime.kernels.triton_forms import Form
from remix_runtime.kernels.triton_plan import plan_from_slots
from remix_runtime.kernels.triton_table import TritonMixtureTable

LLAMA = ((4096, [14336, 14336]), (14336, [4096]))
"""(D, widths of the slices) of an 8B model's feed-forward linears."""


class CompileOnly:
    """Stands where Triton expects the driver of a device."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def collect() -> dict[str, Any]:
    """Makes every launch from here on compile and not run; what was compiled, by name and text."""
    triton.runtime.driver.set_active(CompileOnly())
    triton_launch._can_overlap = lambda device: True  # as on an H100
    found: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        found[f"{self.fn.__name__} {kernel.hash}"] = kernel
        return kernel

    JITFunction.run = compile_only
    return found


def resources(cubin: bytes) -> str:
    """Registers, stack (what was spilled is there) and local memory, as cuobjdump reports them."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        report = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True).stdout
    return ", ".join(re.findall(r"(?:REG|STACK|LOCAL):\d+", report))


def step(D: int, widths: list[int], dtype: torch.dtype, n: int, k: int, r: int) -> None:
    """Every form once, with and without routes and given logits."""
    table = TritonMixtureTable(
        2, D, widths, device="cpu", dtype=dtype, max_rows=n * r, max_experts=n
    )
    for g, width in enumerate(widths):
        layer = LayerWeights(torch.zeros(n, r, D), torch.zeros(n, width, r), torch.zeros(n, D))
        table.set(0, MixtureWeights.from_layer(layer, k, 1.0, plain=True), g)
    x_TD, y_TO = torch.zeros(2, D, dtype=dtype), torch.zeros(2, sum(widths), dtype=dtype)
    plan = plan_from_slots(torch.zeros(2, dtype=torch.int64), 2)
    for table.form in Form:
        table.add(y_TO, x_TD, plan)
    if D < 4096:
        routes_TGk = torch.zeros(2, len(widths), k, dtype=torch.int32)
        for table.form in Form:
            table.add(y_TO, x_TD, plan, routes_TGk, reduce=lambda z: z)


def main() -> None:
    found = collect()
    if "--small" in sys.argv:
        step(80, [50, 64], torch.bfloat16, 4, 2, 3)
        step(80, [50], torch.float32, 4, 2, 3)
    else:
        for D, widths in LLAMA:
            step(D, widths, torch.bfloat16, 8, 4, 8)
    for name, kernel in found.items():
        wide = {width: kernel.asm["ptx"].count(f".{width}") for width in ("v4.b32", "v2.b32")}
        print(
            f"{name[:32]:34}{resources(kernel.asm['cubin'])}, shared {kernel.metadata.shared}, "
            f"{wide}, wgmma {kernel.asm['ptx'].count('wgmma.mma')}, "
            f"mma {kernel.asm['ptx'].count('mma.sync')}"
        )


if __name__ == "__main__":
    main()
