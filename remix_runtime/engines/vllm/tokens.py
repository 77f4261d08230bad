"""Says which tokens of vLLM's current step belong to which slot, and collects their routes.

Shape suffixes: T tokens, k activated experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from remix_runtime.kernels import Batch
from remix_runtime.kernels.device_plan import DevicePlan

LOOK_EVERY = 32
"""Routes are counted in one of so many steps, which spreads what the counting costs."""


class StepTokens:
    """Shared by all layers of a model. `slots_T`: vLLM's own buffer, as long as a step can be;
    what it holds beyond the step's tokens is not initialised."""

    def __init__(self, slots_T: Tensor, *, num_slots: int) -> None:
        self.slots_T = slots_T
        self.num_slots = num_slots
        self._count = 0
        self._batch = Batch([])
        self._plan: DevicePlan | None = None
        if slots_T.is_cuda:
            self._plan = DevicePlan.empty(len(slots_T), num_slots, slots_T.device, num_slots)
            self._make_plan()
        self._loras: tuple[int | None, ...] = ()
        self._steps = 0
        self._recorded: int | None = None
        self._routes: dict[str, list[list[int]]] = {}
        self._load: dict[int, dict[str, Tensor]] = {}

    def begin_step(self) -> None:
        self._steps += 1

    def assign(self, count: int, loras: Sequence[int | None]) -> None:
        """The buffer holds the slots of `count` tokens; `loras`: the LoRA id in each slot. Not
        called for a step where both are as in the one before."""
        self._count = count
        self._loras = tuple(loras)
        if self._plan is None:
            self._batch = Batch(_runs(self.slots_T[:count].tolist()))
        else:
            self._make_plan()

    def batch(self, num_tokens: int) -> Batch:
        """For the rows of a forward pass: a step is padded with rows of the base, and vLLM's
        warm-up takes fewer than it announced."""
        if num_tokens != self._batch.num_tokens:
            slots = self.slots_T[: min(self._count, num_tokens)].tolist()
            self._batch = Batch(_runs(slots + [-1] * (num_tokens - len(slots))))
        return self._batch

    def plan(self, num_tokens: int) -> DevicePlan:
        """`batch` for a GPU: views of the same buffers in every step, as CUDA graphs need. Where
        vLLM has not called `assign`, the plan of all rows is also the plan of the first ones."""
        assert self._plan is not None
        return self._plan.first(num_tokens, self.num_slots)

    def _make_plan(self) -> None:
        from remix_runtime.kernels.triton_plan import plan_from_slots  # needs Triton

        self.slots_T[self._count :].fill_(-1)
        plan_from_slots(self.slots_T, self.num_slots, out=self._plan)

    # -- routes -------------------------------------------------------------------------------

    @property
    def wants_routes(self) -> bool:
        # An empty slot is None, too.
        is_recorded = self._recorded is not None and self._recorded in self._loras
        return is_recorded or self._steps % LOOK_EVERY == 0

    def saw(self, module: str, routes_Tk: Tensor) -> None:
        """Receives the routes of one module in this step, padded with -1."""
        for start, end, slot in self._batch.runs:
            lora = self._loras[slot] if slot >= 0 else None
            if lora is None:
                continue
            routes = routes_Tk[start:end]
            if lora == self._recorded:
                rows = [[i for i in row if i >= 0] for row in routes.tolist()]
                self._routes.setdefault(module, []).extend(rows)
            else:
                self._count_load(lora, module, routes[routes >= 0])

    def record(self, lora: int) -> None:
        """Keeps the routes of all tokens of one LoRA, until they are taken."""
        self._recorded, self._routes = lora, {}

    def take_routes(self) -> dict[str, list[list[int]]]:
        """Ends the recording and returns the routes of the modules that the LoRA adapts."""
        routes, self._recorded, self._routes = self._routes, None, {}
        return {module: rows for module, rows in routes.items() if all(rows)}

    def take_load(self) -> dict[int, dict[str, list[int]]]:
        """How often each expert was activated in the counted steps, by LoRA and module. Resets the
        counts."""
        load, self._load = self._load, {}
        return {
            lora: {module: count.tolist() for module, count in modules.items()}
            for lora, modules in load.items()
        }

    def _count_load(self, lora: int, module: str, experts: Tensor) -> None:
        if not len(experts):
            return
        modules = self._load.setdefault(lora, {})
        known = modules.get(module, torch.zeros(0, dtype=torch.int64))
        count = torch.bincount(experts.long(), minlength=len(known))
        count[: len(known)] += known
        modules[module] = count


def _runs(slots: list[int]) -> list[tuple[int, int, int]]:
    runs, start = [], 0
    for slot, group in groupby(slots):
        end = start + sum(1 for _ in group)
        runs.append((start, end, slot))
        start = end
    return runs
