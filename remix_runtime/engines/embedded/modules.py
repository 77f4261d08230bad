"""The engine's modules in the place of a model's own.

Shape suffixes: T tokens, D input width, O output width, H query heads, G key-value heads,
d head dimension.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remix_runtime.engines.embedded.step import current_step
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import MixtureTable, make_linear, make_table
from remix_runtime.kernels.mixture import MAX_TOP_K

ATTENTION_NAME = "remix_paged"


class ServedLinear(nn.Module):
    """A base linear and the additions of all adapters in their slots.

    `weight` of the original module is freed: the kernel keeps it in a layout of its own.
    """

    def __init__(
        self,
        base: nn.Linear,
        name: str,
        table: MixtureTable | None,
        *,
        dtype: torch.dtype,
        int8: bool = False,
    ) -> None:
        super().__init__()
        self.name = name
        self.table = table
        bias_O = None if base.bias is None else base.bias.data
        try:
            self.linear = make_linear(base.weight.data, bias_O, dtype=dtype, int8=int8)
        except ConfigError as error:
            raise ConfigError(f"model: {name}: {error}") from None
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


class StoredEmbedding(nn.Module):
    """An embedding whose table stays in the type that it is stored in.

    The original module, with what it does beside the look-up, sees a float32 table of the rows
    that are asked for, and so computes what it would with all of the table in float32.
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        # A copy of its own: what was loaded is a view of the base's file, which may change.
        self.table_VD = base.weight.data.clone()
        del base.weight
        base.padding_idx = None  # a row of the whole table
        self._base = base

    def forward(self, ids: Tensor) -> Tensor:
        self._base.weight = F.embedding(ids.flatten(), self.table_VD).float()
        rows: Tensor = self._base(torch.arange(ids.numel()).view(ids.shape))
        return rows


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


def install(
    network: nn.Module, *, num_slots: int, dtype: torch.dtype, int8: bool = False
) -> dict[str, MixtureTable]:
    """Puts `ServedLinear` in the place of every linear, and `StoredEmbedding` in that of
    embeddings that are not of type `dtype`, that of x and y. Returns the mixture tables by name;
    the output head has none. Raises `ConfigError` for weights that 8 bits cannot hold."""
    head = network.get_output_embeddings()  # type: ignore[operator]
    tables: dict[str, MixtureTable] = {}

    def put(name: str, served: nn.Module) -> None:
        parent_name, _, child_name = name.rpartition(".")
        setattr(network.get_submodule(parent_name), child_name, served)

    # By names: what is replaced is freed before the next one is packed.
    for name in [name for name, module in network.named_modules() if _is_replaced(module)]:
        module = network.get_submodule(name)
        if isinstance(module, nn.Linear):
            if module is not head:
                tables[name] = make_table(
                    num_slots,
                    module.in_features,
                    module.out_features,
                    device=module.weight.device,
                    dtype=dtype,
                )
            put(name, ServedLinear(module, name, tables.get(name), dtype=dtype, int8=int8))
        elif isinstance(module, nn.Embedding) and module.weight.dtype != dtype:
            put(name, StoredEmbedding(module))
    return tables


def _is_replaced(module: nn.Module) -> bool:
    """Embeddings are where they are called with ids and look these up: others count or shift
    them."""
    kind = type(module)
    return isinstance(module, nn.Linear) or (
        isinstance(module, nn.Embedding)
        and (kind is nn.Embedding or kind.__name__.endswith("ScaledWordEmbedding"))
    )
