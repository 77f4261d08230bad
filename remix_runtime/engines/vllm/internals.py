"""Changes vLLM's internals. Written for the versions in `plugin.SUPPORTED`.

Four places are changed, each in every process of vLLM:

- `vllm.lora.utils._all_lora_classes` gets classes in front whose linears keep mixtures, not LoRAs.
  They call one custom op for the whole addition, opaque to `torch.compile` and CUDA graphs.
- `vllm.v1.worker.lora_model_runner_mixin.LRUCacheWorkerLoRAManager` gets a subclass that reads
  ReMix folders, and our own engine's plain LoRAs, and tells the kernels which tokens belong to
  which slot.
- `vllm.lora.utils.LogitsProcessorWithLoRA` gets a subclass that leaves logits alone while no LoRA
  adapts the output head (`head.py`).
- The prefix cache's key of a LoRA and `EngineCore.add_lora`: a key stands for one load, not for a
  name, so that new weights under an old name never meet old blocks (vLLM #42125).

Shape suffixes: T tokens, D inputs, O outputs of this process; n experts, m rows of A with the
router's, j columns of B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import vllm.lora.utils
import vllm.v1.core.kv_cache_utils
import vllm.v1.worker.lora_model_runner_mixin
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.config.lora import LoRAConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.forward_context import get_forward_context
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import (
    ColumnParallelLinearWithLoRA,
    MergedColumnParallelLinearWithLoRA,
    MergedQKVParallelLinearWithLoRA,
    QKVParallelLinearWithLoRA,
)
from vllm.lora.layers.replicated_linear import ReplicatedLinearWithLoRA
from vllm.lora.layers.row_parallel_linear import RowParallelLinearWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.v1.engine.core import EngineCore
from vllm.v1.request import Request

from remix_runtime.adapter.layers import base_shapes
from remix_runtime.base.weights import without_weights
from remix_runtime.engines.vllm.head import Head
from remix_runtime.engines.vllm.host import (
    MAX_EXPERTS,
    HostLayer,
    is_ours,
    read_layers,
    require_named,
)
from remix_runtime.engines.vllm.slices import SlicedTable
from remix_runtime.engines.vllm.tokens import StepTokens
from remix_runtime.errors import CheckpointMismatchError

if TYPE_CHECKING:
    from remix_runtime.kernels.triton_table import Pending


def install() -> None:
    """Idempotent. Raises `AttributeError` where vLLM is not as this file expects it."""
    if vllm.lora.utils._all_lora_classes[0] is _CLASSES[0]:
        return
    vllm.lora.utils._all_lora_classes = (*_CLASSES, *vllm.lora.utils._all_lora_classes)
    assert issubclass(Head, vllm.lora.utils.LogitsProcessorWithLoRA)
    vllm.lora.utils.LogitsProcessorWithLoRA = Head
    runner = vllm.v1.worker.lora_model_runner_mixin
    assert issubclass(_WorkerManager, runner.LRUCacheWorkerLoRAManager)
    runner.LRUCacheWorkerLoRAManager = _WorkerManager
    vllm.v1.core.kv_cache_utils._gen_lora_extra_hash_keys = _prefix_cache_key
    EngineCore.add_lora = _counting(EngineCore.add_lora)


# -- layers ---------------------------------------------------------------------------------------


class _RemixLinear(BaseLinearLayerWithLoRA):
    """A linear of vLLM whose slots hold mixtures; a plain LoRA is one expert that is always on."""

    def create_lora_weights(
        self, max_loras: int, lora_config: LoRAConfig, model_config: Any = None
    ) -> None:
        self.lora_config = lora_config
        self._begun: Pending | None = None
        self.is_merged = isinstance(self, MergedColumnParallelLinearWithLoRA)
        if not self.is_merged:
            self.output_slices = (self.output_size,)
        rows, dtype = lora_config.max_lora_rank, lora_config.lora_dtype
        spread = isinstance(self, RowParallelLinearWithLoRA) and self.tp_size > 1
        self.table = SlicedTable(
            max_loras,
            self.input_size,
            self.output_slices,
            device=self.device,
            dtype=dtype,
            max_rows=rows,
            max_experts=MAX_EXPERTS,
            reduce=tensor_model_parallel_all_reduce if spread else None,
        )
        # Where the operator finds this layer while a step runs.
        self.remix_name = f"{self.base_layer.prefix}.remix"
        context = get_current_vllm_config().compilation_config.static_forward_context
        context[self.remix_name] = self
        # vLLM reads shapes off these when it makes the adapters of its warm-up.
        shape = (max_loras, 1, rows)
        self.lora_a_stacked = tuple(
            torch.empty(*shape, self.input_size, dtype=dtype, device="meta")
            for _ in self.output_slices
        )
        self.lora_b_stacked = tuple(
            torch.empty(max_loras, 1, width, rows, dtype=dtype, device="meta")
            for width in self.output_slices
        )

    def reset_lora(self, index: int) -> None:
        self.table.clear(index)

    def set_lora(self, index: int, lora_a: Any, lora_b: Any) -> None:
        self.reset_lora(index)
        pairs = zip(lora_a, lora_b, strict=True) if self.is_merged else [(lora_a, lora_b)]
        for position, (a, b) in enumerate(pairs):
            if a is not None:
                layer = a if isinstance(a, HostLayer) else HostLayer.plain_lora(a, b)
                self.table.set(
                    index,
                    position,
                    layer.laid_out(
                        self._part(self.slice_lora_a, position),
                        self._part(self.slice_lora_b, position),
                        plain=self.table.wants_plain,
                    ),
                )

    def _part(self, take: Callable[[Any], Any], position: int) -> Callable[[Tensor], Tensor]:
        """This process's part of a whole tensor, as vLLM splits it."""
        if self.tp_size == 1:
            return lambda whole: whole
        if not self.is_merged:
            return take

        def part(whole: Tensor) -> Tensor:
            slices: list[Tensor | None] = [None] * self.n_slices
            slices[position] = whole
            taken: Tensor = take(slices)[position]
            return taken

        return part

    def _apply_sync(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if not x.is_cuda:
            on_host: Tensor = super()._apply_sync(x, bias)
            return on_host
        x_TD = x.view(-1, x.shape[-1])
        begun = torch.ops.remix.begin_at_linear(x_TD, self.remix_name)
        output: Tensor = self._get_quant_method().apply(self.base_layer, x, bias)
        y_TO = output.view(-1, output.shape[-1])
        torch.ops.remix.finish_at_linear(y_TO, x_TD, begun, self.remix_name)
        return output

    def _apply_lora_to_output(self, x: Tensor, output: Tensor) -> Tensor:
        x_TD, y_TO = x.view(-1, x.shape[-1]), output.view(-1, output.shape[-1])
        if output.is_cuda:
            torch.ops.remix.add_to_linear(y_TO, x_TD, self.remix_name)
        else:
            self.add_mixtures(y_TO, x_TD)
        return output

    def begin_mixtures(self, x_TD: Tensor) -> None:
        self._begun = self.table.begin(x_TD, self.punica_wrapper.remix_step)

    def finish_mixtures(self, y_TO: Tensor, x_TD: Tensor) -> None:
        begun, self._begun = self._begun, None
        self.table.finish(y_TO, x_TD, self.punica_wrapper.remix_step, begun)

    def add_mixtures(self, y_TO: Tensor, x_TD: Tensor) -> None:
        step: StepTokens = self.punica_wrapper.remix_step
        self.table.add(y_TO, x_TD, step)


# Operators for the compiler, whatever is done inside: which kernels a step wants depends on its
# tokens, and a branch of Python would freeze when it is traced.


def _layer(name: str) -> _RemixLinear:
    layer: _RemixLinear = get_forward_context().no_compile_layers[name]
    return layer


@torch.library.custom_op("remix::add_to_linear", mutates_args=("y_TO",))
def _add_to_linear(y_TO: Tensor, x_TD: Tensor, name: str) -> None:
    _layer(name).add_mixtures(y_TO, x_TD)


@torch.library.custom_op("remix::begin_at_linear", mutates_args=())
def _begin_at_linear(x_TD: Tensor, name: str) -> Tensor:
    """The result is empty. It exists so that the other half runs after this one."""
    _layer(name).begin_mixtures(x_TD)
    return x_TD.new_empty(0)


@torch.library.custom_op("remix::finish_at_linear", mutates_args=("y_TO",))
def _finish_at_linear(y_TO: Tensor, x_TD: Tensor, begun: Tensor, name: str) -> None:
    """Takes x so that its memory is not given away before."""
    _layer(name).finish_mixtures(y_TO, x_TD)


@_add_to_linear.register_fake
def _(y_TO: Tensor, x_TD: Tensor, name: str) -> None:
    return None


@_begin_at_linear.register_fake
def _(x_TD: Tensor, name: str) -> Tensor:
    return x_TD.new_empty(0)


@_finish_at_linear.register_fake
def _(y_TO: Tensor, x_TD: Tensor, begun: Tensor, name: str) -> None:
    return None


class _MixtureColumn(_RemixLinear, ColumnParallelLinearWithLoRA):
    pass


class _MixtureMerged(_RemixLinear, MergedColumnParallelLinearWithLoRA):
    pass


class _MixtureQKV(_RemixLinear, QKVParallelLinearWithLoRA):
    pass


class _MixtureMergedQKV(_RemixLinear, MergedQKVParallelLinearWithLoRA):
    pass


class _MixtureRow(_RemixLinear, RowParallelLinearWithLoRA):
    pass


class _MixtureReplicated(_RemixLinear, ReplicatedLinearWithLoRA):
    pass


# In vLLM's own order, where the special comes before the general.
_CLASSES = (
    _MixtureColumn,
    _MixtureMerged,
    _MixtureQKV,
    _MixtureMergedQKV,
    _MixtureRow,
    _MixtureReplicated,
)


# -- loading --------------------------------------------------------------------------------------


class _Manager(LRUCacheLoRAModelManager):
    def _init_punica_wrapper(self, *args: Any, **kwargs: Any) -> None:
        super()._init_punica_wrapper(*args, **kwargs)
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.remix_step = StepTokens(wrapper._token_lora_indices, num_slots=self.lora_slots)

    def _create_lora_modules(self) -> None:
        super()._create_lora_modules()
        for name, module in self.modules.items():
            if isinstance(module, _RemixLinear):
                parts = self.packed_modules.get(name, [name])
                # A packed module that takes one LoRA for all of its parts has one name.
                module.table.names = tuple(parts if module.is_merged else [name])

    def set_adapter_mapping(self, mapping: Any) -> None:
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.remix_step.begin_step()
        super().set_adapter_mapping(mapping)

    def _set_adapter_mapping(self, mapping: Any) -> None:
        super()._set_adapter_mapping(mapping)
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.remix_step.assign(wrapper.indices_len[0] or 0, self.lora_index_to_id)


class _WorkerManager(LRUCacheWorkerLoRAManager):
    _manager_cls = _Manager

    def __init__(self, vllm_config: VllmConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config, *args, **kwargs)
        if self.lora_config.fully_sharded_loras:
            raise ValueError(
                "fully_sharded_loras: found true, expected false: remix-serve's vLLM plugin "
                "routes on whole inputs"
            )
        self._base_shapes = base_shapes(without_weights(vllm_config.model_config.hf_config))

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        if not is_ours(folder, lora_request.lora_name):
            return self._load_plain(lora_request)
        checkpoint, layers = read_layers(
            folder,
            self._base_shapes,
            max_rows=self.lora_config.max_lora_rank,
        )
        require_named(checkpoint.digest, lora_request.lora_name)
        named = {self._vllm_name(name): layer for name, layer in layers.items()}
        if left_alone := self._left_alone(named):
            raise CheckpointMismatchError(
                f"target_modules: {left_alone[0]} (of {len(left_alone)}) takes no adapter in this "
                "server, see --lora-target-modules"
            )
        rank = checkpoint.num_experts * checkpoint.r
        return LoRAModel(
            lora_request.lora_int_id,
            rank,
            {
                name: LoRALayerWeights(name, rank, rank, layer, layer)
                for name, layer in named.items()
            },
        )

    def _load_plain(self, lora_request: LoRARequest) -> LoRAModel:
        model = super()._load_adapter(lora_request)
        for name, lora in model.loras.items():
            module = self._adapter_manager.modules.get(self._wrapper_name(name))
            if isinstance(module, _RemixLinear) and isinstance(lora.lora_a, Tensor):
                lora.optimize()
                lora.lora_a = lora.lora_b = HostLayer.plain_lora(lora.lora_a, lora.lora_b)
        return model

    def _vllm_name(self, name: str) -> str:
        mapper = getattr(self._adapter_manager.model, "hf_to_vllm_mapper", None)
        if mapper is None:
            return name
        mapped = mapper.get_rename_mapper()._map_name(name)
        return name if mapped is None else str(mapped)

    def _wrapper_name(self, name: str) -> str:
        """The module that a linear of the checkpoint is a part of, or the linear itself."""
        for packed, parts in self._adapter_manager.packed_modules.items():
            if name in parts:
                return str(packed)
        return name

    def _left_alone(self, layers: Mapping[str, HostLayer]) -> list[str]:
        """Modules of an adapter that this server has no mixtures for. Those of other pipeline
        stages are left out."""
        here = {name for name, _ in self._adapter_manager.model.named_modules()}
        wrapped = self._adapter_manager.modules
        missing = []
        for name in layers:
            wrapper = self._wrapper_name(name)
            is_here = wrapper in here or wrapper.rpartition(".")[0] in here
            if is_here and not isinstance(wrapped.get(wrapper), _RemixLinear):
                missing.append(name)
        return missing


# -- the prefix cache -----------------------------------------------------------------------------

_loads: Counter[int] = Counter()
"""How often each LoRA id was loaded into this engine, whose scheduler runs in this process."""


def _prefix_cache_key(request: Request) -> list[tuple[str, str, str, int, int]]:
    lora = request.lora_request
    if not lora:
        return []
    return [("lora", lora.lora_name, lora.lora_path, lora.lora_int_id, _loads[lora.lora_int_id])]


def _counting(add_lora: Callable[..., bool]) -> Callable[..., bool]:
    @wraps(add_lora)  # vLLM reads the types of the arguments off it
    def counted(self: EngineCore, lora_request: LoRARequest) -> bool:
        _loads[lora_request.lora_int_id] += 1
        return add_lora(self, lora_request)

    return counted
