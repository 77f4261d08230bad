"""The engine's modules in the place of a model's own.

Shape suffixes: T tokens, D input width, O output width, H query heads, G key-value heads,
d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from remix_runtime.engines.embedded.step import current_step
from remix_runtime.kernels import MixtureTable, make_linear, make_table
from remix_runtime.kernels.mixture import MAX_TOP_K

ATTENTION_NAME = "remix_paged"


class ServedLinear(nn.Module):
    """A base linear and the additions of all adapters in their slots.

    `weight` of the original module is freed: the kernel keeps it in a layout of its own.
    """

    def __init__(self, base: nn.Linear, name: str, table: MixtureTable | None) -> None:
        super().__init__()
        self.name = name
        self.table = table
        self.linear = make_linear(base.weight.data, None if base.bias is None else base.bias.data)
        self._out_features = base.out_features

    def forward(self, x: Tensor) -> Tensor:
        x_TD = x.reshape(-1, x.shape[-1])
        y_TO = self.linear(x_TD)
        if self.table is not None:
            step = current_step()
            if step.mixture.adapted:
                routes_Tk = None
                if step.routes is not None:
                    routes_Tk = step.routes[self.name] = x_TD.new_empty(
                        (len(x_TD), MAX_TOP_K), dtype=torch.int32
                    )
                self.table.add(y_TO, x_TD, step.mixture, routes_Tk)
        return y_TO.view(*x.shape[:-1], self._out_features)


def paged_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface over the KV pages of the current step.

    `query` [1, H, T, d], `key` and `value` [1, G, T, d]; returns [1, T, H, d].
    """
    step = current_step()
    layer: int = module.layer_idx  # type: ignore[assignment]
    o_THd = step.kv.attend(
        layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        step.attention,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        softcap=softcap,
    )
    return o_THd.unsqueeze(0), None


def install(network: nn.Module, *, num_slots: int) -> dict[str, MixtureTable]:
    """Puts `ServedLinear` in the place of every linear. Returns the mixture tables by name; the
    output head has none."""
    head = network.get_output_embeddings()  # type: ignore[operator]
    tables: dict[str, MixtureTable] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Linear):
            if module is not head:
                tables[name] = make_table(
                    num_slots,
                    module.in_features,
                    module.out_features,
                    device=module.weight.device,
                    dtype=module.weight.dtype,
                )
            parent_name, _, child_name = name.rpartition(".")
            parent = network.get_submodule(parent_name)
            setattr(parent, child_name, ServedLinear(module, name, tables.get(name)))
    return tables
