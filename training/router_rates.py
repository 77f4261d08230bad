"""How fast each router learns: a rate in logits per step, whatever the size of a layer's inputs.

AdamW moves a weight by about its rate in a step, so it moves the logits P x by up to rate · |x|₁.
In one model |x|₁ is 7 in one layer and 2,000 in another: one rate leaves the first where it began,
and makes the second certain of its experts before they differ. So each router has a rate of its
own, the wanted step of a logit over the median of |x|₁ in the first step.

Shape suffixes: B sequences, T positions, N tokens, L adapted layers in the order of their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.ranks import Ranks

_STATE = "input_size"


class InputSizes:
    """The median of |x|₁ over the tokens of the first step, for each adapted layer. Not the mean:
    the first token of a sequence has inputs a hundred times as large as any other in some
    layers."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self._seen: dict[str, list[Tensor]] = {name: [] for name in layers}
        self.median_L: Tensor | None = None
        """float32 on the CPU; None until they are known. Part of a run's state."""

    @contextmanager
    def watching(self, mask_BT: Tensor) -> Iterator[None]:
        """Looks at the inputs in one forward pass, unless sizes are known. `mask_BT` is True for
        tokens; the layers may see each row more than once."""
        if self.median_L is not None:
            yield
            return

        def look(name: str, x_BTD: Tensor) -> None:
            is_token_BT = mask_BT.repeat_interleave(len(x_BTD) // len(mask_BT), dim=0)
            size_BT = x_BTD.detach().float().abs().sum(-1)
            self._seen[name].append(size_BT[is_token_BT])

        hooks = [
            layer.register_forward_pre_hook(lambda _, args, name=name: look(name, args[0]))
            for name, layer in self._layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

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
            medians = [torch.cat(seen_N).median() for seen_N in self._seen.values()]
            self._seen.clear()
            size_L = torch.stack(medians)
            ranks.average([size_L])
            self.median_L = size_L.cpu().clamp_min(torch.finfo(torch.float32).tiny)
        return self.median_L
