"""The lowest held-out loss of a run: when a run ends early, and which weights it hands out."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from remix_runtime.errors import TrainingError

_LOWEST, _WEIGHT = "lowest_loss", "best_weight/"


class Best:
    """What the lowest held-out loss was, at which step, and with which weights if they are kept."""

    def __init__(self, *, keeps_weights: bool) -> None:
        self.step = 0
        """0: no loss was seen."""
        self.loss = math.inf
        self._keeps_weights = keeps_weights
        self._weights: dict[str, Tensor] = {}

    def see(self, step: int, loss: float, parameters: Mapping[str, nn.Parameter]) -> None:
        if loss >= self.loss or math.isnan(loss):
            return
        self.step, self.loss = step, loss
        if self._keeps_weights:
            self._weights = {name: p.detach().clone() for name, p in parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of it."""
        if not self.step:
            return {}
        lowest = torch.tensor([self.step, self.loss], dtype=torch.float64)
        return {_LOWEST: lowest, **{_WEIGHT + name: w for name, w in self._weights.items()}}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a saved state. Raises `TrainingError` where weights are wanted that it has
        not kept."""
        weights = {
            name.removeprefix(_WEIGHT): weight
            for name, weight in state.items()
            if name.startswith(_WEIGHT)
        }
        if _LOWEST not in state:
            return
        step, self.loss = state[_LOWEST].tolist()
        self.step = int(step)
        if self._keeps_weights and not weights:
            raise TrainingError(
                f"keep: found best with a state that has the lowest held-out loss, of step "
                f"{self.step}, but not its weights: it was saved with keep: last; expected last, "
                "or --overwrite"
            )
        self._weights = weights if self._keeps_weights else {}

    def put_into(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Makes the kept weights those of the model."""
        with torch.no_grad():
            for name, weight in self._weights.items():
                parameters[name].copy_(weight)
