"""Which tensors an adapter has: a ReMix one, or a plain LoRA, a mixture of one that is always on.

Shape suffixes: n experts, r LoRA rank, D input width, O output width of an adapted linear.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import ClassVar

from torch import Tensor

from remix_runtime.adapter.checkpoint.config import canonical_json
from remix_runtime.adapter.checkpoint.lora_config import ALL_LINEAR, canonical_lora_json
from remix_runtime.adapter.checkpoint.name_pattern import name_pattern
from remix_runtime.adapter.checkpoint.targets import Targets, target_shapes
from remix_runtime.adapter.checkpoint.types import (
    AdapterConfig,
    BaseShapes,
    LayerWeights,
    LoraConfig,
    Mixture,
)


class Layout(ABC):
    """What the tensor file must have, as the configuration says."""

    prefix: ClassVar[str]
    parts: ClassVar[Mapping[str, str]]
    """The tensors of a layer, and the letters of their shapes."""
    canonical: bytes
    """The configuration's part in the digest."""
    targets: str
    """What names the adapted modules, for messages."""

    @classmethod
    def tensor_name(cls, module: str, part: str) -> str:
        return f"base_model.model.{module}.{cls.prefix}_{part}.weight"

    def place(self, name: str) -> tuple[str, str] | None:
        """The module and the part that a tensor's name stands for; None where it is none of the
        adapter's."""
        match = re.fullmatch(
            rf"base_model\.model\.([A-Za-z0-9_.]+)\.{self.prefix}_({'|'.join(self.parts)})\.weight",
            name,
        )
        return (match[1], match[2]) if match is not None and self.names(match[1]) else None

    @abstractmethod
    def names(self, module: str) -> bool:
        """Whether the configuration names a module."""

    @abstractmethod
    def unused(self, modules: Iterable[str]) -> Collection[str]:
        """Targets that must name one of `modules`, and do not."""

    @abstractmethod
    def linears(self, base: BaseShapes) -> Mapping[str, tuple[int, int]]:
        """Those of a base that the configuration names, in sorted order. May raise
        `CheckpointMismatchError`."""

    @abstractmethod
    def mixture(self, module: str) -> Mixture:
        """What the tensors of a module that is named are used with."""


class RemixLayout(Layout):
    prefix = "remix"
    parts: ClassVar = {"A": "nrD", "B": "nOr", "router": "nD"}

    def __init__(self, config: AdapterConfig) -> None:
        self._config = config
        self._targets = Targets(config.target_modules)
        self.canonical = canonical_json(config)
        self.targets = ", ".join(config.target_modules[:8])

    def names(self, module: str) -> bool:
        return any(True for _ in self._targets.naming(module))

    def unused(self, modules: Iterable[str]) -> Collection[str]:
        unused = dict.fromkeys(self._config.target_modules)
        for module in modules:
            for target in self._targets.naming(module):
                unused.pop(target, None)
        return unused

    def linears(self, base: BaseShapes) -> Mapping[str, tuple[int, int]]:
        return target_shapes(base, self._config.target_modules)

    def mixture(self, module: str) -> Mixture:
        return self._config


def remix_tensors(layers: Mapping[str, LayerWeights]) -> dict[str, Tensor]:
    """The tensors of a ReMix adapter by their names in the file."""
    return {
        RemixLayout.tensor_name(module, part): tensor
        for module, weights in layers.items()
        for part, tensor in zip(
            RemixLayout.parts, (weights.a_nrD, weights.b_nOr, weights.router_nD), strict=True
        )
    }


class LoraLayout(Layout):
    """Names modules as PEFT 0.21 does (`check_target_module_exists`, `get_pattern_key`)."""

    prefix = "lora"
    parts: ClassVar = {"A": "rD", "B": "Or"}

    def __init__(self, config: LoraConfig) -> None:
        self._config = config
        self.canonical = canonical_lora_json(config)
        names = config.target_modules
        self.targets = names if isinstance(names, str) else ", ".join(names[:8])
        self._is_target = (lambda _: True) if names == ALL_LINEAR else _naming(names)
        self._is_excluded = _naming(config.exclude_modules)
        # The first number that fits: a later one may be an expert's.
        lists = [rf"(?:^|.*?\.){name}" for name in config.layers_pattern] or [r".*?\.[^.]*"]
        self._layer = [re.compile(rf"{name}\.(?P<layer>\d+)\.") for name in lists]
        self._ranks = [(name_pattern(p, is_suffix=True), r) for p, r in config.rank_pattern]
        self._alphas = [(name_pattern(p, is_suffix=True), a) for p, a in config.alpha_pattern]

    def names(self, module: str) -> bool:
        if self._is_excluded(module) or not self._is_target(module):
            return False
        if not self._config.layers_to_transform or module in self._config.target_modules:
            return True  # layers do not matter to a whole name
        return self._layer_of(module) in self._config.layers_to_transform

    def unused(self, modules: Iterable[str]) -> Collection[str]:
        return ()  # PEFT lets a list name modules that the base does not have

    def linears(self, base: BaseShapes) -> Mapping[str, tuple[int, int]]:
        return {name: base[name] for name in sorted(base) if self.names(name)}

    def mixture(self, module: str) -> Mixture:
        r = next((r for fits, r in self._ranks if fits(module)), self._config.r)
        alpha = next((a for fits, a in self._alphas if fits(module)), self._config.lora_alpha)
        scaling = alpha / (math.sqrt(r) if self._config.use_rslora else r)
        return Mixture(num_experts=1, top_k=1, r=r, routing_weight=scaling)

    def _layer_of(self, module: str) -> int | None:
        matches = (pattern.match(module) for pattern in self._layer)
        match = next((match for match in matches if match is not None), None)
        return None if match is None else int(match["layer"])


def _naming(names: tuple[str, ...] | str) -> Callable[[str], bool]:
    """Whether a list names a module, or a text does."""
    if isinstance(names, str):
        return name_pattern(names)
    targets = Targets(names)
    return lambda module: any(True for _ in targets.naming(module))
