"""What a step needs of memory, by a formula: so that a setting can be chosen before it is tried.

The formula is that of blocks with attention and a gated feed-forward part, as in Llama, Mistral and
Qwen; what autograd keeps of one is counted in `kept_by_block`. docs/training.md has it
in words.

Symbols: D width, F feed-forward width, Q and K widths of queries and of keys, n experts, k of them
active, r their rank, s bytes of a number of the base; P rows as the model sees them, L positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from remix_runtime.adapter.layers import RemixLinear
from training.blocks import blocks_of, routed_in
from training.completion_loss import LOGITS
from training.config import TrainConfig
from training.data import Batch
from training.losses import IGNORED

_COUNTED = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Types of bases whose blocks are those of the formula."""
_FLOAT, _INDEX = 4, 8
_OF_A_TRAINED_NUMBER = 7 * _FLOAT
"""Itself, its gradient, two moments; the last good state of it and of the moments."""
_OF_A_LOGIT = 2 * _FLOAT
"""Itself and its log-probability, whose place its gradient takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes, by what they are for."""

    base: int
    adapter: int
    """Experts and routers with what AdamW has of them."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self))


def memory_of(
    model: PreTrainedModel,
    layers: Mapping[str, RemixLinear],
    config: TrainConfig,
    batch: Batch,
) -> Memory | None:
    """The memory of steps on passes over a batch as the model sees it: with all copies of its
    rows. None for a base whose blocks are others."""
    if model.config.model_type not in _COUNTED:
        return None
    labels_PL = batch.side_by_side(batch.labels_BT, fill=IGNORED)
    tokens, learned = labels_PL.numel(), len(labels_PL) * int((labels_PL != IGNORED).any(0).sum())
    trained = [p for layer in layers.values() for p in layer.parameters(recurse=False)]
    ours = {id(p) for p in trained}
    base = [p for p in model.parameters() if id(p) not in ours]
    size = model.dtype.itemsize
    above = blocks_of(model).above
    whole = [
        kept_by_block(block, model.config, size, first=i == 0) for i, block in enumerate(above)
    ]
    if config.gradient_checkpointing:
        a_token = sum(kept_between(block, model.config, size) for block in above) + max(whole)
    else:
        a_token = sum(whole)
    working = size * 4 * model.config.get_text_config().intermediate_size  # gradients of a block
    copies = sum(size * p.numel() for p in trained)  # of A and B as the products read them
    of_a_logit = _OF_A_LOGIT + (size if size < _FLOAT else 0)  # as the base writes it
    return Memory(
        base=sum(p.numel() * p.element_size() for p in base),
        adapter=_OF_A_TRAINED_NUMBER * sum(p.numel() for p in trained),
        activations=tokens * (a_token + working) + copies,
        logits=of_a_logit * min(LOGITS, learned * model.config.get_text_config().vocab_size),
    )


def kept_by_block(block: nn.Module, config: Any, size: int, *, first: bool) -> int:
    """Bytes that a block keeps of a token for its gradients. Nothing flows back through the
    attention of the `first` adapted block where only its feed-forward part is adapted."""
    shape = config.get_text_config()
    d, f = shape.hidden_size, shape.intermediate_size
    head = getattr(shape, "head_dim", None) or d // shape.num_attention_heads
    q, k = head * shape.num_attention_heads, head * shape.num_key_value_heads
    adapted = [layer for layer in routed_in(block) if isinstance(layer, RemixLinear)]
    feed_forward = [layer for layer in adapted if ".mlp." in layer.name]
    attention = [layer for layer in adapted if layer not in feed_forward]
    reads_d = any(not layer.name.endswith("down_proj") for layer in feed_forward)
    reads_f = any(layer.name.endswith("down_proj") for layer in feed_forward)
    reads_states = any(not layer.name.endswith("o_proj") for layer in attention)
    flows_in = bool(attention) or not first  # a gradient, into the feed-forward part
    kept: int = size * (f * reads_f + d * reads_d + d * reads_states)
    if flows_in or reads_d:
        kept += size * 3 * f
    if flows_in:
        kept += size * (2 * q + 2 * k) + 2 * d * _FLOAT  # what norms read, in float32
        if any(name.endswith("q_norm") for name, _ in block.named_modules()):
            kept += (q + k) * _FLOAT
    return kept + sum(_kept_by_linear(layer, size) for layer in adapted)


def kept_between(block: nn.Module, config: Any, size: int) -> int:
    """Bytes of a token that stay of a block which is computed again: its input and its routes."""
    adapted = [layer for layer in routed_in(block) if isinstance(layer, RemixLinear)]
    return int(size * config.get_text_config().hidden_size) + sum(map(_kept_of_routes, adapted))


def _kept_by_linear(layer: RemixLinear, size: int) -> int:
    n, r, d_in = layer.a_nrD.shape
    inputs = d_in * _FLOAT if size < _FLOAT else 0  # of the router, in float32
    return int(n * r * (size + _FLOAT) + inputs) + _kept_of_routes(layer)


def _kept_of_routes(layer: RemixLinear) -> int:
    """Logits and what their log-probabilities need, for the router's gradient."""
    n = layer.router_nD.shape[0]
    return int(3 * n * _FLOAT + layer.top_k * _INDEX + 3 * _FLOAT)
