"""The decoder blocks of Llama-like models as one module that is one native call.

Only for classes whose forward pass is known to be that of `native/block.c`; every other model
keeps its own code between our linears and our attention.

Shape suffixes: T tokens, D hidden width, r rotated width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from remix_runtime.engines.embedded.modules import ServedLinear
from remix_runtime.engines.embedded.step import current_step
from remix_runtime.kernels.attention import PagedKV
from remix_runtime.kernels.blocks import PROJECTIONS, BlockSpec, NativeBlocks
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear

LLAMA_LIKE = {
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
}


class FusedBlocks(nn.Module):
    """Stands in a model's list of layers for all of them.

    When routes are recorded the original blocks run one by one: the same bits, more slowly.
    """

    def __init__(self, blocks: nn.ModuleList, kv: PagedKV) -> None:
        super().__init__()
        self.blocks = blocks
        self._native = NativeBlocks([_spec(block) for block in blocks], kv)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor], **kwargs: Any
    ) -> Tensor:
        step = current_step()
        if step.routes is not None:
            for block in self.blocks:
                hidden_states = block(
                    hidden_states, position_embeddings=position_embeddings, **kwargs
                )
            return hidden_states
        cos_Tr, sin_Tr = (part[0].contiguous() for part in position_embeddings)
        x_TD = hidden_states[0].clone()
        self._native(x_TD, cos_Tr, sin_Tr, step.attention, step.mixture)
        return x_TD.unsqueeze(0)


def fuse(network: nn.Module, kv: PagedKV) -> bool:
    """Puts `FusedBlocks` into `network` if its blocks and the kernels allow it. Returns whether
    they do."""
    model = getattr(network, "model", None)
    blocks = getattr(model, "layers", None)
    if not kv.is_native or not isinstance(blocks, nn.ModuleList):
        return False
    if not all(type(block).__name__ in LLAMA_LIKE and _is_plain(block) for block in blocks):
        return False
    assert isinstance(model, nn.Module)
    model.layers = nn.ModuleList([FusedBlocks(blocks, kv)])
    return True


def _is_plain(block: nn.Module) -> bool:
    """Whether the block has float32 kernels everywhere and the activation of the native block."""
    linears = [module for module in block.modules() if isinstance(module, ServedLinear)]
    activation = block.mlp.config.hidden_act  # type: ignore[union-attr]
    return activation == "silu" and all(isinstance(x.linear, PackedLinear) for x in linears)


def _spec(block: nn.Module) -> BlockSpec:
    attention: Any = block.self_attn
    mlp: Any = block.mlp
    linears, tables = {}, {}
    for name in PROJECTIONS:
        served = getattr(attention, f"{name}_proj", None) or getattr(mlp, f"{name}_proj")
        assert isinstance(served.linear, PackedLinear)
        assert isinstance(served.table, NativeMixtureTable)
        linears[name], tables[name] = served.linear, served.table
    config = attention.config
    q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
    # Mistral's attention reads its window from the configuration, the others keep their own.
    window = getattr(attention, "sliding_window", None)
    if type(block).__name__ == "MistralDecoderLayer":
        window = config.sliding_window
    return BlockSpec(
        linears=linears,
        tables=tables,
        attention_norm_D=_norm(block.input_layernorm),
        mlp_norm_D=_norm(block.post_attention_layernorm),
        q_norm_d=None if q_norm is None else _norm(q_norm),
        k_norm_d=None if k_norm is None else _norm(k_norm),
        heads=config.num_attention_heads,
        window=window,
        eps=config.rms_norm_eps,
        scale=attention.scaling,
    )


def _norm(module: Any) -> Tensor:
    weight = module.weight.detach()
    assert isinstance(weight, Tensor)
    assert weight.dtype == torch.float32
    return weight.contiguous()
