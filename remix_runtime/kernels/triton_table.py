"""The mixture table of CUDA devices: slots as stacked tensors at fixed addresses.

A table serves G *slices* that share x, as in a merged gate/up or qkv linear: each with its own
experts, router, routes and columns of y. An adapter may lack some.

Shape suffixes: T tokens, D input width, O all slices' outputs, G slices, S slots, N experts (a
power of two), M rows of A and of Bᵀ, k activated experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from remix_runtime.errors import CapacityError
from remix_runtime.kernels.device_plan import DevicePlan
from remix_runtime.kernels.mixture import Batch, MixtureWeights, Reduce
from remix_runtime.kernels.triton_forms import Form, choose_form
from remix_runtime.kernels.triton_launch import ROUTER_EXPERTS
from remix_runtime.kernels.triton_ops import (
    add_mixture,
    begin_mixture,
    finish_mixture,
    router_logits,
)
from remix_runtime.kernels.triton_plan import plan_from_slots

MAX_EXPERTS = 64
"""A token's selection is the bits of one integer."""


@dataclass(frozen=True, slots=True)
class Pending:
    """An addition that `TritonMixtureTable.begin` has begun."""

    plan: DevicePlan
    arguments: tuple[Any, ...]
    """The arguments of `finish_mixture` after y and the routes."""
    routes_TGk: Tensor | None


class TritonMixtureTable:
    """The adapters of one linear layer, by slot.

    With `max_rows` (the largest n·r) and `max_experts` everything is allocated at once and stays
    where it is, so that captured CUDA graphs see later `set` and `clear`; what does not fit is a
    `CapacityError`. Without, tensors grow when an adapter needs it.

    A and Bᵀ are kept in `dtype`, that of x and y: they are most of the bytes of a decode step. The
    router is float32, as are all sums. ω is not folded into Bᵀ but multiplies sums in float32: it
    costs nothing there, and B of a checkpoint in `dtype` stays what was trained.
    """

    def __init__(
        self,
        num_slots: int,
        in_features: int,
        slices: Sequence[int],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        max_rows: int | None = None,
        max_experts: int | None = None,
    ) -> None:
        assert (max_rows is None) == (max_experts is None)
        self.in_features = in_features
        self.slices = list(slices)
        self.out_features = sum(slices)
        self.form: Form | None = None
        """If set, this form is taken instead of `choose_form`'s."""
        self._dtype, self._device = dtype, torch.device(device)
        self._limits = None if max_rows is None or max_experts is None else (max_rows, max_experts)
        S, G = num_slots, len(self.slices)
        self.meta_SG3 = torch.zeros(S, G, 3, dtype=torch.int32, device=device)
        """(n, k, r), zeros for what an adapter lacks."""
        self.weight_SG = torch.zeros(S, G, device=device)
        starts = itertools.accumulate(self.slices, initial=0)
        columns = list(zip(starts, self.slices, strict=False))
        self.columns_G2 = torch.tensor(columns, dtype=torch.int32, device=device)
        self.a_SGMD, self.router_SGND, self.b_SMO = self._tensors(max_rows or 0, max_experts or 0)

    @property
    def num_slots(self) -> int:
        return len(self.meta_SG3)

    def set(self, slot: int, weights: MixtureWeights, slice: int = 0) -> None:
        """Puts an adapter into one slice of a slot; the slot's other slices stay as they are, so
        `clear` it before the first slice of another adapter."""
        n, k, r = weights.n, weights.k, weights.r
        assert weights.in_features == self.in_features
        assert weights.out_features == self.slices[slice]
        self._reserve(n * r, n)
        a_mD, b_jO = weights.plain()
        column = sum(self.slices[:slice])
        self.a_SGMD[slot, slice, : n * r] = a_mD[: n * r]
        self.router_SGND[slot, slice, :n] = a_mD[n * r :]
        self.b_SMO[slot, : n * r, column : column + self.slices[slice]] = b_jO
        self.weight_SG[slot, slice] = weights.routing_weight
        self.meta_SG3[slot, slice] = torch.tensor([n, k, r], dtype=torch.int32)

    def clear(self, slot: int) -> None:
        """Empties all slices of a slot."""
        self.meta_SG3[slot] = 0

    def add(
        self,
        y_TO: Tensor,
        x_TD: Tensor,
        batch: Batch | DevicePlan,
        routes_Tk: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """Adds ω · sum of the selected experts to the rows of y, in place.

        y may be strided. `routes_Tk`: as in the protocol for slice 0; [T, G, k] for all slices.
        `reduce` makes the whole router logits of this device's part of them, float32 [T, G, N]:
        an all-reduce where x is split over devices.
        """
        routes_TGk = _cleared(routes_Tk)
        plan = self._work(x_TD, batch)
        if plan is None:
            return
        self._check(y_TO, plan)
        operands = self.operands(x_TD, plan)
        z_TGN = None if reduce is None else reduce(router_logits(*operands))
        form = self._form(x_TD, plan)
        add_mixture(y_TO, routes_TGk, z_TGN, *operands, form)

    def begin(
        self, x_TD: Tensor, batch: Batch | DevicePlan, routes_Tk: Tensor | None = None
    ) -> Pending | None:
        """What of `add` needs no y, beside whatever the caller's stream does next: the base
        product. `finish` must follow, also where a CUDA graph is captured, and x stays as it is
        until then."""
        routes_TGk = _cleared(routes_Tk)
        plan = self._work(x_TD, batch)
        if plan is None:
            return None
        operands, form = self.operands(x_TD, plan), self._form(x_TD, plan)
        made = begin_mixture(routes_TGk, *operands, form)
        return Pending(plan, (*made, *operands, form), routes_TGk)

    def finish(self, y_TO: Tensor, pending: Pending | None) -> None:
        """y += the mixtures; `add` is `begin` and this, on one stream."""
        if pending is not None:
            self._check(y_TO, pending.plan)
            finish_mixture(y_TO, pending.routes_TGk, *pending.arguments)

    def _work(self, x_TD: Tensor, batch: Batch | DevicePlan) -> DevicePlan | None:
        """The plan; None where no row has an adapter."""
        T, N = len(x_TD), self.router_SGND.shape[2]
        if not T or not N or (isinstance(batch, Batch) and not batch.adapted):
            return None
        plan = batch if isinstance(batch, DevicePlan) else self._plan(batch)
        assert plan.num_slots == self.num_slots
        assert x_TD.dtype == self._dtype
        assert x_TD.shape == (len(plan.slot_T), self.in_features)
        return plan

    def _check(self, y_TO: Tensor, plan: DevicePlan) -> None:
        assert y_TO.dtype == self._dtype
        assert y_TO.shape == (len(plan.slot_T), self.out_features)
        assert y_TO.stride(1) == 1

    def _form(self, x_TD: Tensor, plan: DevicePlan) -> int:
        if self.form is not None:
            return int(self.form)
        size = self.in_features * self.out_features
        return int(choose_form(len(x_TD), plan.max_adapters, size))

    def operands(
        self, x_TD: Tensor, plan: DevicePlan
    ) -> tuple[Tensor, *tuple[Tensor, ...], list[int]]:
        """The arguments that the operators of `triton_ops` share."""
        return (
            x_TD,
            self.a_SGMD,
            self.router_SGND,
            self.b_SMO,
            self.meta_SG3,
            self.weight_SG,
            self.columns_G2,
            plan.slot_T,
            plan.order_T,
            plan.few_C3,
            plan.many_C3,
            self.slices,
        )

    def _plan(self, batch: Batch) -> DevicePlan:
        if batch.plan is None or batch.plan.num_slots != self.num_slots:
            adapters = len({slot for _, _, slot in batch.runs if slot >= 0})
            slot_T = batch.slots().to(self._device)
            batch.plan = plan_from_slots(slot_T, self.num_slots, max_adapters=adapters)
        return batch.plan

    def _reserve(self, rows: int, experts: int) -> None:
        max_rows, max_experts = self._limits or (rows, MAX_EXPERTS)
        for name, found, allowed in (
            ("num_experts", experts, min(max_experts, MAX_EXPERTS)),
            ("num_experts · r", rows, max_rows),
        ):
            if found > allowed:
                raise CapacityError(f"{name}: the adapter has {found}, room is for {allowed}")
        _, _, M, _ = self.a_SGMD.shape
        N = self.router_SGND.shape[2]
        if rows > M or experts > N:
            a_SGMD, router_SGND, b_SMO = self._tensors(max(rows, M), max(experts, N))
            a_SGMD[:, :, :M] = self.a_SGMD
            router_SGND[:, :, :N] = self.router_SGND
            b_SMO[:, :M] = self.b_SMO
            self.a_SGMD, self.router_SGND, self.b_SMO = a_SGMD, router_SGND, b_SMO

    def _tensors(self, rows: int, experts: int) -> tuple[Tensor, Tensor, Tensor]:
        """A, routers and Bᵀ of all slots. Zeros, not whatever memory holds: rows that no adapter
        fills may be multiplied with 0."""
        S, G, D = self.num_slots, len(self.slices), self.in_features
        N = max(ROUTER_EXPERTS, triton.next_power_of_2(experts)) if experts else 0
        return (
            torch.zeros(S, G, rows, D, dtype=self._dtype, device=self._device),
            torch.zeros(S, G, N, D, device=self._device),
            torch.zeros(S, rows, self.out_features, dtype=self._dtype, device=self._device),
        )


def _cleared(routes_Tk: Tensor | None) -> Tensor | None:
    """[T, G, k], filled with -1."""
    if routes_Tk is None:
        return None
    assert routes_Tk.dtype == torch.int32
    assert routes_Tk.stride(-1) == 1
    routes_Tk.fill_(-1)
    return routes_Tk.unsqueeze(1) if routes_Tk.dim() == 2 else routes_Tk
