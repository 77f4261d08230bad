"""ReMix in PEFT: importing this module makes `peft_type "REMIX"` known to PEFT 0.21.

Then `get_peft_model`, `save_pretrained`, `PeftModel.from_pretrained`, `AutoPeftModelForCausalLM`
and transformers' `load_adapter` work as for any other method. Folders that PEFT writes are
checkpoints of ours (format version 1), and ours load through PEFT. A process that did not import
this module fails with `KeyError: 'REMIX'`; the files name no Python code.

What PEFT's model computes is `layers.RemixLinear` with the deterministic top-k, in training mode
too. So a plain PEFT training loop trains the experts, but not the router: the choice of experts is
not differentiable, and its parameters keep `grad = None`. `remix train` trains both, and so does a
trainer with `training.mixin`.

Shape suffixes: T tokens (any leading shape), D input width, O output width, n experts, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import PeftConfig, PeftType, TaskType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.config import PEFT_TYPE, emit_config
from remix_runtime.adapter.checkpoint.types import FORMAT_VERSION, AdapterConfig, routing_weight
from remix_runtime.adapter.layers import Routed, router_logits, weighted_experts
from remix_runtime.adapter.routing import expert_mask
from remix_runtime.errors import CheckpointFormatError, ConfigError

_FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
_MODEL_TYPES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")


def _add_peft_type() -> None:
    """`PeftType` is a closed enum; this is what its class statement would have done for REMIX."""
    member = str.__new__(PeftType, PEFT_TYPE)
    member._name_ = PEFT_TYPE
    member._value_ = PEFT_TYPE
    member.__objclass__ = PeftType
    type.__setattr__(PeftType, PEFT_TYPE, member)
    PeftType._member_map_[PEFT_TYPE] = member
    PeftType._value2member_map_[PEFT_TYPE] = member
    PeftType._member_names_.append(PEFT_TYPE)


_is_registered = PEFT_TYPE in PeftType._member_map_
if not _is_registered:
    _add_peft_type()


@dataclass
class RemixConfig(PeftConfig):  # type: ignore[misc]
    """PEFT's view of `AdapterConfig`, with the paper's settings as defaults.

    Raises `ConfigError` for values that a checkpoint could not hold.
    """

    num_experts: int = field(default=8, metadata={"help": "Experts (LoRAs) of a layer."})
    top_k: int = field(default=4, metadata={"help": "Experts that a token activates."})
    r: int = field(default=8, metadata={"help": "Rank of each expert."})
    routing_weight: float | None = field(
        default=None, metadata={"help": "ω, the weight of an active expert; None: 2/√(top_k·r)."}
    )
    task_type: Any = field(default=None, metadata={"help": "CAUSAL_LM, the only one."})
    target_modules: list[str] | set[str] | None = field(
        default=None, metadata={"help": "Suffixes of the linears to adapt; None: feed-forward."}
    )
    format_version: int = field(default=FORMAT_VERSION, metadata={"help": "Checkpoint format."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.REMIX
        if self.task_type is None:
            self.task_type = TaskType.CAUSAL_LM
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(
                f"format_version: found {self.format_version!r}, expected {FORMAT_VERSION}"
            )
        if isinstance(self.target_modules, str):
            raise ConfigError(
                f"target_modules: found the text {self.target_modules!r}, expected a list of names"
            )
        if self.target_modules is not None:
            self.target_modules = set(self.target_modules)
        if self.routing_weight is None and self.top_k > 0 and self.r > 0:
            self.routing_weight = routing_weight("rslora", top_k=self.top_k, r=self.r)
        try:
            emit_config(self.adapter_config())
        except (CheckpointFormatError, TypeError) as error:
            raise ConfigError(str(error)) from None

    def adapter_config(self) -> AdapterConfig:
        """The same as our own type; where no target is named yet, the feed-forward linears."""
        return AdapterConfig(
            base_model_name_or_path=self.base_model_name_or_path or "",
            num_experts=self.num_experts,
            top_k=self.top_k,
            r=self.r,
            routing_weight=self.routing_weight,  # type: ignore[arg-type]
            target_modules=tuple(sorted(self.target_modules or _FEED_FORWARD)),
            task_type=str(TaskType(self.task_type).value),
            revision=self.revision,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields of `adapter_config.json`: target modules sorted, no null for the base."""
        fields: dict[str, Any] = super().to_dict()
        fields["base_model_name_or_path"] = self.base_model_name_or_path or ""
        fields["target_modules"] = sorted(self.target_modules) if self.target_modules else None
        return fields


class _Weight(nn.Module):
    """Holds one tensor under the name `weight`, which PEFT's key format asks for."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(*shape))


def _tensor(parts: nn.ModuleDict, adapter_name: str) -> Tensor:
    module = parts[adapter_name]
    assert isinstance(module, _Weight)
    return module.weight


class RemixLayer(Routed, BaseTunerLayer):  # type: ignore[misc]
    """A linear with any number of ReMix adapters; active ones add up. Weights are float32."""

    adapter_layer_names = ("remix_A", "remix_B", "remix_router")
    other_param_names = ("top_k", "routing_weight")

    def __init__(
        self, base_layer: nn.Linear, adapter_name: str, config: RemixConfig, *, name: str = ""
    ) -> None:
        super().__init__()
        self.name = name
        self.base_layer: nn.Linear = base_layer
        self.remix_A = nn.ModuleDict()
        self.remix_B = nn.ModuleDict()
        self.remix_router = nn.ModuleDict()
        self.top_k: dict[str, int] = {}
        self.routing_weight: dict[str, float] = {}
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: RemixConfig) -> None:
        """Adds an adapter: B = 0, A and router as in `layers.RemixLinear`."""
        n, r = config.num_experts, config.r
        width_o, width_d = self.base_layer.out_features, self.base_layer.in_features
        a, b, router = _Weight(n, r, width_d), _Weight(n, width_o, r), _Weight(n, width_d)
        for a_rD in a.weight:
            nn.init.kaiming_uniform_(a_rD, a=5**0.5)
        nn.init.kaiming_uniform_(router.weight, a=5**0.5)
        self.remix_A[adapter_name] = a
        self.remix_B[adapter_name] = b
        self.remix_router[adapter_name] = router
        self.top_k[adapter_name] = config.top_k
        assert config.routing_weight is not None
        self.routing_weight[adapter_name] = config.routing_weight
        self._move_adapter_to_device_of_base_layer(adapter_name)
        BaseTunerLayer.set_adapter(self, self.active_adapters, inference_mode=config.inference_mode)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        """Keeps float32, unlike PEFT's: a router in bfloat16 would make ties common."""
        for parts in (self.remix_A, self.remix_B, self.remix_router):
            if _tensor(parts, adapter_name).device.type != "meta":
                parts[adapter_name].to(device or self.base_layer.weight.device)

    def forward(self, x_TD: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y_TO: Tensor = self.base_layer(x_TD, *args, **kwargs)
        if self.disable_adapters:
            return y_TO
        names: Any = self.active_adapters  # a list of text; PEFT has no types
        for name in names:
            if name in self.remix_A:
                y_TO = y_TO + self._addition(x_TD, name).to(y_TO.dtype)
        return y_TO

    def _addition(self, x_TD: Tensor, name: str) -> Tensor:
        # A model that was cast as a whole took these along; the sums stay in float32.
        router_nD, a_nrD, b_nOr = (
            _tensor(parts, name).float()
            for parts in (self.remix_router, self.remix_A, self.remix_B)
        )
        z_Tn = router_logits(x_TD.detach(), router_nD)
        mask_Tn = expert_mask(self.choose(z_Tn, self.top_k[name]), z_Tn.shape[-1])
        gate_Tn = self.routing_weight[name] * mask_Tn
        return weighted_experts(x_TD, a_nrD, b_nOr, gate_Tn)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        _refuse_merge()

    def unmerge(self) -> NoReturn:
        _refuse_merge()


class RemixModel(BaseTuner):  # type: ignore[misc]
    """PEFT's wrapper that puts a `RemixLayer` in the place of each target linear."""

    prefix = "remix_"
    tuner_layer_cls = RemixLayer
    target_module_mapping = dict.fromkeys(_MODEL_TYPES, _FEED_FORWARD)

    def _create_and_replace(
        self,
        peft_config: RemixConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, RemixLayer):
            target.update_layer(adapter_name, peft_config)
            return
        if not isinstance(target, nn.Linear):
            raise ConfigError(
                f"target_modules: {current_key} is a {type(target).__name__}, expected nn.Linear"
            )
        layer = RemixLayer(target, adapter_name, peft_config, name=current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PEFT would drop `adapter_names` in silence and answer with the active adapter."""
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "adapter_names: found a mixed batch, expected one adapter for all rows; "
                "`remix serve` batches requests of many adapters"
            )
        yield

    def _check_merge_allowed(self) -> NoReturn:
        _refuse_merge()


def _refuse_merge() -> NoReturn:
    raise ConfigError(
        "a ReMix adapter cannot be merged: every token chooses its own experts, so no single "
        "weight matrix computes the same; use `unload` to get the base model back"
    )


if not _is_registered:
    register_peft_method(
        name=PEFT_TYPE.lower(), config_cls=RemixConfig, model_cls=RemixModel, prefix="remix_"
    )
