"""Gradient checkpointing: a block's activations are computed again when gradients need them.

A recomputed block must select the experts that it has drawn, or its gradients belong to another
pass. PyTorch restores the global random state and no other, and the rule that draws is gone by
then: so each block keeps its selections, some bytes per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from remix_runtime.adapter.layers import Routed
from remix_runtime.errors import ConfigError
from training.blocks import blocks_of, routed_in

_Rule = Callable[[Routed, Tensor, int], Tensor]


def recompute_blocks(model: PreTrainedModel) -> None:
    """From now on the model keeps the inputs of its blocks, and computes what is in them twice.
    Gradients have the same bits. Raises `ConfigError` for a base whose blocks are not known."""
    blocks = blocks_of(model).above
    if not blocks:
        raise ConfigError(
            f"gradient_checkpointing: found true with a base of type {model.config.model_type}, "
            "whose blocks transformers does not name; expected false"
        )
    for block in blocks:
        block.forward = functools.partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,  # nothing draws but the routers
            context_fn=functools.partial(_first_and_again, routed_in(block)),
        )


def _first_and_again(
    layers: Sequence[Routed],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of one pass through a block, and of the same pass again."""
    kept: dict[Routed, Tensor] = {}

    def first(layer: Routed, z_Tn: Tensor, k: int) -> Tensor:
        # Detached, so that nothing is kept for gradients that the second pass would not have.
        kept[layer] = rules[layer](z_Tn.detach(), k)
        return kept[layer]

    def again(layer: Routed, z_Tn: Tensor, k: int) -> Tensor:
        return kept[layer]

    rules = {layer: layer.select for layer in layers}
    return _selecting(layers, first, traced=True), _selecting(layers, again, traced=False)


@contextmanager
def _selecting(layers: Sequence[Routed], rule: _Rule, *, traced: bool) -> Iterator[None]:
    before = [(layer.select, layer.trace) for layer in layers]
    for layer in layers:
        layer.select = functools.partial(rule, layer)
        layer.trace = layer.trace if traced else None
    try:
        yield
    finally:
        for layer, (select, trace) in zip(layers, before, strict=True):
            layer.select, layer.trace = select, trace
