"""A frozen base over the processes of a run: each holds a part of every weight, and has a whole
block only while it runs.

PyTorch's FSDP2 gathers a block before it runs and before its gradients are made. It is put on the
base alone, before an adapter is attached: experts, routers and optimizer are whole in each process,
as without it. What runs the base is a collective call: all processes run it equally often.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from remix_runtime.errors import ConfigError
from training.blocks import blocks_of


def require_several(processes: int) -> None:
    """Raises `ConfigError` for one process, which could hold no part alone."""
    if processes == 1:
        raise ConfigError(
            "shard_base: found true in a run of one process, expected several, as "
            "torchrun --nproc-per-node 8 -m remix_runtime.cli train RECIPE starts them"
        )


def shard(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Moves this process's part of a base from the CPU to its device; no more than one block is
    there in whole. Embedding and head are gathered for all of a pass.

    Raises `ConfigError` for a base whose blocks are not known.
    """
    blocks = blocks_of(model).above
    if not blocks:
        raise ConfigError(
            f"shard_base: found true with a base of type {model.config.model_type}, whose blocks "
            "transformers does not name; expected false"
        )
    model.requires_grad_(False)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    try:
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh)
    except ValueError as error:  # of a parameter that has no rows to be divided
        raise ConfigError(
            f"shard_base: found true with a base that cannot be divided: {error}"
        ) from None
    return model


def is_sharded(model: PreTrainedModel) -> bool:
    return isinstance(model, FSDPModule)
