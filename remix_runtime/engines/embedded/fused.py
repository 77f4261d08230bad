"""The forward pass of a Llama-like model in few calls: all decoder blocks are a native one.

At one token, what transformers does between a model's parts takes as long as the output head. So
the parts are called here as its code calls them, and nothing else. Only for classes whose forward
pass is known to be this one; every other model keeps its own code between our linears and our
attention.

Shape suffixes: T tokens, D hidden width, r rotated width, S tokens whose logits are wanted, V
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remix_runtime.engines.embedded.modules import ServedLinear, StoredEmbedding
from remix_runtime.engines.embedded.step import Step
from remix_runtime.kernels.attention import PagedKV
from remix_runtime.kernels.blocks import PROJECTIONS, BlockSpec, NativeBlocks
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.elementwise import rms_norm

LLAMA_LIKE = ("Llama", "Mistral", "Qwen2", "Qwen3")


class FusedModel:
    """Shares the parts of the network that it was made of, and computes what that does: the same
    bits but for the rotation of queries and keys, which the native blocks round once less."""

    def __init__(self, network: Any, kv: PagedKV) -> None:
        model = network.model
        embedding = model.embed_tokens
        self._table_VD: Tensor = (
            embedding.table_VD if isinstance(embedding, StoredEmbedding) else embedding.weight
        )
        self._frequencies_r: Tensor = model.rotary_emb.inv_freq.float().repeat(2)
        self._rotary_scale: float = model.rotary_emb.attention_scaling
        self._blocks = NativeBlocks([_spec(block) for block in model.layers], kv)
        self._norm_D = _norm(model.norm)
        self._eps: float = model.norm.variance_epsilon
        self._head: PackedLinear = network.lm_head.linear

    def __call__(
        self, ids: Sequence[int], positions: Sequence[int], wanted: Sequence[int], step: Step
    ) -> Tensor:
        """Logits [S, V] of the `wanted` ones of T tokens."""
        x_TD = F.embedding(torch.tensor(ids), self._table_VD).float()
        angles_Tr = torch.tensor(positions, dtype=torch.float32)[:, None] * self._frequencies_r
        cos_Tr, sin_Tr = angles_Tr.cos(), angles_Tr.sin()
        if self._rotary_scale != 1.0:
            cos_Tr, sin_Tr = cos_Tr * self._rotary_scale, sin_Tr * self._rotary_scale
        self._blocks(x_TD, cos_Tr, sin_Tr, step.attention, step.mixture)
        x_SD = x_TD if len(wanted) == len(x_TD) else x_TD[torch.tensor(wanted, dtype=torch.long)]
        return self._head(rms_norm(x_SD, self._norm_D, self._eps))


def fuse(network: nn.Module, kv: PagedKV) -> FusedModel | None:
    """The forward pass of `network`, whose linears are ours already. None if the model or the
    kernels have no such pass."""
    name = type(network).__name__.removesuffix("ForCausalLM")
    if not kv.is_native or name not in LLAMA_LIKE:
        return None
    blocks: Any = network.get_submodule("model.layers")
    if not all(_is_plain(block) for block in blocks):
        return None
    return FusedModel(network, kv)


def _is_plain(block: Any) -> bool:
    """Whether the block has float32 kernels everywhere and the activation of the native block."""
    linears = [module for module in block.modules() if isinstance(module, ServedLinear)]
    activation = block.mlp.config.hidden_act
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
