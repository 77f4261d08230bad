"""How fast each router learns: a rate in logits per step, whatever the size of a layer's inputs.

AdamW moves a weight by about its rate in a step, so it moves the logits P x by up to rate · |x|₁.
In one model |x|₁ is 7 in one layer and 2,000 in another: one rate leaves the first where it began,
and makes the second certain of its experts before they differ. So each router has a rate of its
own, the wanted step of a logit over the median of |x|₁ in the first step.

Shape suffixes: P rows as the model sees them, L positions of those, D width; in sizes, L adapted
layers in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.data import Batch, require_rows
from training.ranks import Ranks

_STATE = "input_size"


@contextmanager
def watching(sizes: InputSizes | None, batch: Batch) -> Iterator[None]:
    """Looks at the layers' inputs in a pass over a batch, unless nobody asks or sizes are known."""
    if sizes is None or sizes.median_L is not None:
        yield
        return
    is_token_PL = batch.side_by_side(batch.mask_BT)
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: sizes.look(name, args[0], is_token_PL)
        )
        for name, layer in sizes.layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class InputSizes:
    """The median of |x|₁ over the tokens of a pass, for each adapted layer: the mean of it over the
    passes of the first step. Not the mean of all: the first token of a sequence has inputs a
    hundred times as large as any other in some layers."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self._seen: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.median_L: Tensor | None = None
        """float32 on the CPU; None until they are known. Part of a run's state."""

    def look(self, name: str, x_PLD: Tensor, is_token_PL: Tensor) -> None:
        """Notes the inputs of a layer in one pass. Raises `ConfigError` for one that does not see
        rows of tokens."""
        require_rows(name, x_PLD, is_token_PL.shape)
        size_PL = x_PLD.detach().float().abs().sum(-1)
        self._seen[name].append(size_PL[is_token_PL].median())

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it."""
        return {} if self.median_L is None else {_STATE: self.median_L}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state. After one without sizes they are measured in the next
        step."""
        self.median_L = state.get(_STATE)

    def settle(self, ranks: Ranks) -> Tensor:
        """The sizes [L], the mean of those of all processes, by what was seen until now."""
        if self.median_L is None:
            size_L = torch.stack([torch.stack(passes).mean() for passes in self._seen.values()])
            self._seen.clear()
            ranks.average([size_L])
            self.median_L = size_L.cpu().clamp_min(torch.finfo(torch.float32).tiny)
        return self.median_L
