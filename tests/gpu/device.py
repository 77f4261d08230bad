"""The device of these tests: CUDA, or where `make gpu-check` is only tried out the CPU and Triton's
interpreter, with small widths."""

from __future__ import annotations

import os

import pytest
import torch

TRIED_OUT = os.environ.get("REMIX_GPU_TINY") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter multiplies bfloat16 matrices as integers.
HALF = torch.float16 if TRIED_OUT else torch.bfloat16
on_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
on_device = pytest.mark.skipif(DEVICE == "cpu" and not TRIED_OUT, reason="no CUDA device")
