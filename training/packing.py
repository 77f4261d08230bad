"""Packing: the rows of a pass stand side by side in fewer, longer ones, and no padding is computed.

Each row keeps its positions, by which transformers' masks keep attention inside it. Everything but
the model sees the rows as they are: `PackedBatch` puts what the model reads side by side, and what
it gives apart.

Shape suffixes: B rows, T positions of a row, P packed rows, L positions of a packed row, N places
in all packed rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from remix_runtime.errors import ConfigError
from training.data import Batch

_PROBE = ((0, 1, 1), (1, 0))
"""Two rows of tokens that every vocabulary has."""
_ROUNDING = 1e-3
"""Logits of a probe that differ by more, relative to the largest, are of other rows too."""


@dataclass(frozen=True, slots=True)
class PackedBatch(Batch):
    """Rows and their places in packed ones."""

    place_BT: Tensor
    """Where a token is among all places; 0 for padding."""
    inputs_PL: Tensor
    position_PL: Tensor
    """In its row. What is left of a packed row is a row of its own."""

    def model_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.inputs_PL, "position_ids": self.position_PL}

    def side_by_side(self, x_BT: Tensor, *, fill: float = 0) -> Tensor:
        p, length = self.inputs_PL.shape
        x_N = x_BT.new_full((p * length, *x_BT.shape[2:]), fill)
        x_N[self.place_BT[self.mask_BT]] = x_BT[self.mask_BT]
        return x_N.view(p, length, *x_BT.shape[2:])

    def apart(self, x_PL: Tensor) -> Tensor:
        x_BT = x_PL.flatten(0, 1)[self.place_BT]
        is_token = self.mask_BT.view(*self.mask_BT.shape, *(1,) * (x_BT.dim() - 2))
        return torch.where(is_token, x_BT, torch.zeros_like(x_BT))


def packed(batch: Batch, *, width: int) -> PackedBatch:
    """The rows of a batch in packed rows of at most `width` tokens, or of the longest row: each in
    the first that has room, longer rows first."""
    lengths = batch.mask_BT.sum(-1).tolist()
    width = max(width, *lengths)
    ends: list[int] = []
    place_BT = torch.zeros_like(batch.inputs_BT)
    starts: dict[int, tuple[int, int]] = {}
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        length = lengths[row]
        p = next((p for p, end in enumerate(ends) if end + length <= width), len(ends))
        if p == len(ends):
            ends.append(0)
        starts[row] = p, ends[p]
        ends[p] += length
    longest = max(ends)
    # As whoever is the last in a packed row: what is left of it begins with position 0, too.
    position_PL = torch.stack([torch.arange(longest) - min(end, longest) for end in ends])
    position_PL = position_PL.to(place_BT.device)
    for row, (p, start) in starts.items():
        along_T = torch.arange(lengths[row], device=place_BT.device)
        place_BT[row, : lengths[row]] = p * longest + start + along_T
        position_PL[p, start : start + lengths[row]] = along_T
    made = PackedBatch(
        inputs_BT=batch.inputs_BT,
        labels_BT=batch.labels_BT,
        mask_BT=batch.mask_BT,
        place_BT=place_BT,
        inputs_PL=torch.zeros_like(position_PL),
        position_PL=position_PL,
    )
    made.inputs_PL.copy_(made.side_by_side(batch.inputs_BT))
    return made


@torch.no_grad()
def require_packable(model: PreTrainedModel) -> None:
    """Raises `ConfigError` for a model that mixes what stands side by side, as those do whose
    attention knows distances and no positions."""
    lengths = [len(row) for row in _PROBE]
    inputs_BT = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, tokens in enumerate(_PROBE):
        inputs_BT[row, : len(tokens)] = torch.tensor(tokens)
    mask_BT = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    inputs_BT, mask_BT = inputs_BT.to(model.device), mask_BT.to(model.device)
    batch = packed(Batch(inputs_BT, inputs_BT, mask_BT), width=sum(lengths))
    try:
        apart = model(input_ids=inputs_BT, use_cache=False).logits[mask_BT]
        together = batch.apart(model(**batch.model_inputs(), use_cache=False).logits)[mask_BT]
    except TypeError:  # no position_ids
        apart, together = torch.zeros(1), torch.ones(1)
    if (apart - together).abs().max() > _ROUNDING * apart.abs().max():
        raise ConfigError(
            f"packing: found true with a base of type {model.config.model_type}, which mixes rows "
            "that stand side by side; expected false"
        )
