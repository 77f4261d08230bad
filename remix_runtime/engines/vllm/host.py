"""One adapter on its way through vLLM: from its folder to the layers of a worker.

vLLM carries a LoRA as two tensors for each module, `lora_a` and `lora_b`, from its loader through
its cache to `set_lora` of a layer. A `HostLayer` stands for both. It has what vLLM asks of a tensor
on that way, and what a mixture has beyond a LoRA. Without any import of vLLM.

Shape suffixes: n experts, k activated, r rank, D inputs, O outputs; m = n·r + n rows of A and of
the router, j = n·r columns of B.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint, read_checkpoint
from remix_runtime.adapter.checkpoint.config import PEFT_TYPE
from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE
from remix_runtime.adapter.checkpoint.types import BaseShapes, LayerWeights, Mixture
from remix_runtime.errors import CapacityError, CheckpointMismatchError
from remix_runtime.kernels import MixtureWeights

MAX_EXPERTS = 32
"""The most experts of an adapter in the slots of a worker."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


class HostLayer:
    """The adapter of one linear in host memory. `laid_out` is made at the first use and kept."""

    device = torch.device("cpu")

    def __init__(self, layer: LayerWeights, mixture: Mixture) -> None:
        self._mixture = mixture
        self._layer: LayerWeights | None = layer
        self._laid_out: MixtureWeights | None = None

    @classmethod
    def plain_lora(cls, lora_a_rD: Tensor, lora_b_Or: Tensor) -> HostLayer:
        """A LoRA whose scaling is in B already: one expert that every token activates."""
        r, width_d = lora_a_rD.shape
        layer = LayerWeights(lora_a_rD[None], lora_b_Or[None], lora_a_rD.new_zeros(1, width_d))
        return cls(layer, Mixture(num_experts=1, top_k=1, r=r, routing_weight=1.0))

    def pin_memory(self) -> HostLayer:
        """vLLM calls this on tensors that it copies to a GPU. Slots are filled rarely, so pinned
        memory would gain nothing."""
        return self

    def laid_out(
        self,
        part_of_a: Callable[[Tensor], Tensor],
        part_of_b: Callable[[Tensor], Tensor],
        *,
        plain: bool,
    ) -> MixtureWeights:
        """The adapter as the kernels of this process want it. `part_of_a` and `part_of_b` take this
        process's part of [m, D] and of [O, j] under tensor parallelism; they and `plain` are the
        same in every call."""
        if self._laid_out is None:
            assert self._layer is not None
            n, r = self._mixture.num_experts, self._mixture.r
            a_nrD, b_nOr, router_nD = self._layer.a_nrD, self._layer.b_nOr, self._layer.router_nD
            a_mD = part_of_a(torch.cat([a_nrD.flatten(0, 1), router_nD]))
            b_Oj = part_of_b(b_nOr.transpose(0, 1).flatten(1))
            part = LayerWeights(
                a_mD[: n * r].reshape(n, r, -1),
                b_Oj.reshape(-1, n, r).transpose(0, 1),
                a_mD[n * r :],
            )
            self._laid_out = MixtureWeights.from_layer(
                part, self._mixture.top_k, self._mixture.routing_weight, plain=plain
            )
            self._layer = None
        return self._laid_out


def is_ours(folder: Path, name: str) -> bool:
    """Whether our reader is to read a folder that vLLM loads under `name`: one that says that it
    holds a ReMix adapter, and what has a digest for its name, as our engine gives it. Others are
    plain LoRAs of vLLM's users, and whatever is wrong with those is for its own loader to say."""
    if _DIGEST.fullmatch(name):
        return True
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("peft_type") == PEFT_TYPE


def read_layers(
    folder: Path, base: BaseShapes, *, max_rows: int
) -> tuple[Checkpoint, Mapping[str, HostLayer]]:
    """Reads and validates an adapter; returns it and its layers by module name. Raises
    `CheckpointError`, and `CapacityError` where the slots of this process are too small for it."""
    checkpoint = read_checkpoint(folder, base=base)
    require_fit(checkpoint.num_experts, checkpoint.r, max_rows=max_rows)
    layers = {
        name: HostLayer(layer, checkpoint.mixtures[name])
        for name, layer in checkpoint.layers.items()
    }
    return checkpoint, layers


def require_named(digest: str, name: str) -> None:
    """Raises `CheckpointMismatchError` for a LoRA whose name is another digest than its own: the
    folder has changed since the caller looked at it."""
    if _DIGEST.fullmatch(name) and name != digest:
        raise CheckpointMismatchError(f"found an adapter with digest {digest}, expected {name}")


def require_fit(n: int, r: int, *, max_rows: int) -> None:
    """Raises `CapacityError` for a mixture that the slots of vLLM's workers cannot hold."""
    if n * r > max_rows:
        raise CapacityError(
            f"max_lora_rank: the adapter has {n} experts of rank {r}, {n * r} together; found "
            f"{max_rows}, expected at least that"
        )
    if n > MAX_EXPERTS:
        raise CapacityError(f"num_experts: found {n}, expected at most {MAX_EXPERTS}")
