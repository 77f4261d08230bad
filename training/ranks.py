"""The processes of one run: each takes rows of its own through the same weights.

`torchrun` and `accelerate launch` start them, on one machine or many. Gradients are averaged over
them before a step, so all take the same one, in one message with an adapter's gradients. Nothing
else goes over the wire, unless the base is sharded (`sharding.py`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from remix_runtime.extras import require_extra


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def share(self, index: int) -> int:
        """The pass of the whole run that is this process's pass `index`: passes are dealt in turn,
        so that n processes do together what one does with n times as many passes in a step."""
        return index * self.count + self.rank

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Makes float tensors of one type and device, in place, their mean over all processes."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [tensor.numel() for tensor in tensors])
        for tensor, mean in zip(tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))

    def most(self, number: int, device: torch.device) -> int:
        """The largest of a number of each process."""
        if self.count == 1:
            return number
        most = torch.tensor(number, device=device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()

    def leave(self) -> None:
        """Ends the connection to the others."""
        if self.count > 1:
            dist.destroy_process_group()


ALONE = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """Connects to the other processes, if a launcher has started some: by gloo on the CPU, by NCCL
    on CUDA, where each process of a machine has a device of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    require_extra("a run of several processes", "train", "accelerate")
    from accelerate import PartialState

    PartialState._reset_state()  # of an earlier run in this process
    state = PartialState(cpu=device.type == "cpu")
    return Ranks(state.process_index, state.num_processes)
