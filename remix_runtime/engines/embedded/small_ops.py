"""A model's norms and gated feed-forwards, with our fused operations in them.

By class name: only where transformers' forward pass is known to be the formula of
`kernels/elementwise.py`. Anything else keeps its own code.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from remix_runtime.kernels.elementwise import gelu_tanh_mul, rms_norm, silu_mul

_LLAMA_LIKE = ("Llama", "Mistral", "Qwen2", "Qwen3")
_GEMMAS = ("Gemma", "Gemma2", "Gemma3")
# Gemma's norms store the weight less one.
_NORMS = {f"{name}RMSNorm": 0.0 for name in _LLAMA_LIKE} | {f"{g}RMSNorm": 1.0 for g in _GEMMAS}
_FEED_FORWARDS = {f"{name}MLP" for name in (*_LLAMA_LIKE, *_GEMMAS)}
_GATED = {"silu": silu_mul, "gelu_pytorch_tanh": gelu_tanh_mul}


class ServedNorm(nn.Module):
    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight: Tensor = norm.weight.detach()
        self._eps: float = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
        self._offset = offset

    def forward(self, hidden_states: Tensor) -> Tensor:
        return rms_norm(hidden_states, self.weight, self._eps, offset=self._offset)


class ServedFeedForward(nn.Module):
    """down(act(gate x) · up x)"""

    def __init__(self, mlp: Any, activation: str) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self._gated = _GATED[activation]

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(self._gated(self.gate_proj(x), self.up_proj(x)))
        return y


def install_small_ops(network: nn.Module) -> None:
    """Replaces what `network` has of them, in place."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child).__name__
            if kind in _NORMS:
                setattr(parent, name, ServedNorm(child, _NORMS[kind]))
            elif kind in _FEED_FORWARDS and (activation := _activation(child)) in _GATED:
                setattr(parent, name, ServedFeedForward(child, activation))


def _activation(mlp: Any) -> str:
    config = mlp.config
    name: str = getattr(config, "hidden_activation", None) or config.hidden_act
    return name
