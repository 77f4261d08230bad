"""Random numbers as a pure function of where they are used: no generator state to save.

A run is a function of its seed, so a resumed run draws what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts, the same on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator on `device`, seeded with `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(*parts))
