"""Which models run as one native call, and what that call is made of.

At one token, what transformers does between a model's parts takes as long as the output head. Only
classes whose forward pass is known to be that of `kernels/network.py` run so; every other model
keeps its own code between our linears and our attention.

Shape suffixes: D hidden width, d head width, r rotated width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from remix_runtime.engines.embedded.modules import ServedLinear, StoredEmbedding
from remix_runtime.kernels.attention import PagedKV
from remix_runtime.kernels.cpu import NativeMixtureTable, PackedLinear
from remix_runtime.kernels.network import PROJECTIONS, BlockSpec, NativeNetwork, NetworkSpec

LLAMA_LIKE = ("Llama", "Mistral", "Qwen2", "Qwen3")


def fuse(network: nn.Module, kv: PagedKV) -> NativeNetwork | None:
    """The forward pass of `network`, whose linears are ours already; it shares their memory. None
    if the model or the kernels have no such pass."""
    name = type(network).__name__.removesuffix("ForCausalLM")
    if not kv.is_native or name not in LLAMA_LIKE:
        return None
    model: Any = network.get_submodule("model")
    if not all(_is_plain(block) for block in model.layers):
        return None
    embedding: Any = model.embed_tokens
    table_VD = embedding.table_VD if isinstance(embedding, StoredEmbedding) else embedding.weight
    head: Any = network.get_submodule("lm_head")
    assert isinstance(head.linear, PackedLinear)
    spec = NetworkSpec(
        embedding_VD=table_VD.detach().contiguous(),
        blocks=[_spec(block) for block in model.layers],
        norm_D=_norm(model.norm),
        eps=model.norm.variance_epsilon,
        head=head.linear,
        frequencies=model.rotary_emb.inv_freq.float().contiguous(),
        rotary_scale=model.rotary_emb.attention_scaling,
    )
    return NativeNetwork(spec, kv)


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
