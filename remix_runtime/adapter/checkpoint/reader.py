"""Reading an adapter folder: every check that must hold before an engine sees the tensors.

Shape suffixes: n experts, r LoRA rank, D input width, O output width of an adapted linear.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import config as remix
from remix_runtime.adapter.checkpoint import lora_config as lora
from remix_runtime.adapter.checkpoint.defaults import canonical_defaults, defaults_in
from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE, wrong
from remix_runtime.adapter.checkpoint.folder import Folder, open_folder
from remix_runtime.adapter.checkpoint.layouts import Layout, LoraLayout, RemixLayout
from remix_runtime.adapter.checkpoint.parity_file import Parity, parity_in
from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.adapter.checkpoint.tensor_file import Header, read_header, read_tensors
from remix_runtime.adapter.checkpoint.training_file import training_in
from remix_runtime.adapter.checkpoint.types import (
    DEFAULT_LIMITS,
    AdapterConfig,
    BaseShapes,
    Checkpoint,
    CheckpointLimits,
    LayerWeights,
    LoraConfig,
    Mixture,
)
from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import CheckpointFormatError, CheckpointMismatchError

TENSOR_FILE = "adapter_model.safetensors"
DTYPES = frozenset({"F32", "BF16", "F16"})


def read_checkpoint(
    folder: Path, *, base: BaseShapes | None = None, limits: CheckpointLimits = DEFAULT_LIMITS
) -> Checkpoint:
    """Reads and validates the adapter in `folder`; its tensors are float32 on the CPU.

    With `base`, the adapted linears must be exactly those of the base model that its
    `target_modules` name, at their widths. Raises `CheckpointFormatError` or
    `CheckpointMismatchError`, which name file, field or tensor, what was found and what was
    expected.
    """
    with open_folder(folder) as files:
        return _checkpoint_in(files, base, limits)


def read_adapter(
    folder: Path,
    *,
    base: BaseShapes | None = None,
    vocab_size: int | None = None,
    max_tokens: int | None = None,
    limits: CheckpointLimits = DEFAULT_LIMITS,
) -> tuple[Checkpoint, Parity | None]:
    """`read_checkpoint` and `read_parity` of one state of the folder, which may be switched to
    another version at any time."""
    with open_folder(folder) as files:
        checkpoint = _checkpoint_in(files, base, limits)
        parity = parity_in(files, vocab_size=vocab_size, max_tokens=max_tokens, limits=limits)
        return checkpoint, parity


def adapter_digest(
    config: AdapterConfig, tensor_file: bytes, defaults: AdapterDefaults | None = None
) -> str:
    """An adapter's identity: 64 lower-case hexadecimal digits.

    SHA-256 of the canonical JSON of the configuration, followed directly by the bytes of
    `adapter_model.safetensors` and by `canonical_defaults(defaults)`. Spelling and order of the
    JSON files, the fields that PEFT adds, README, parity file and `training.json` are no part of
    it; dtype and metadata of the tensor file are.
    """
    digest = hashlib.sha256(remix.canonical_json(config))
    digest.update(tensor_file)
    if defaults is not None:
        digest.update(canonical_defaults(defaults))
    return digest.hexdigest()


def _config_in(
    files: Folder, limits: CheckpointLimits
) -> tuple[AdapterConfig | LoraConfig, Layout]:
    fields = parse_object(files.read(CONFIG_FILE, max_bytes=limits.config_bytes), file=CONFIG_FILE)
    if fields.get("peft_type") == lora.PEFT_TYPE:
        plain = lora.lora_config(fields, limits)
        return plain, LoraLayout(plain)
    if fields.get("peft_type") == remix.PEFT_TYPE:
        config = remix.remix_config(fields, limits)
        return config, RemixLayout(config)
    raise wrong(fields, "peft_type", f'"{remix.PEFT_TYPE}" or "{lora.PEFT_TYPE}"')


def _checkpoint_in(files: Folder, base: BaseShapes | None, limits: CheckpointLimits) -> Checkpoint:
    config, layout = _config_in(files, limits)
    defaults = defaults_in(files)
    max_bytes = limits.header_bytes + limits.tensor_bytes
    with files.open(TENSOR_FILE, max_bytes=max_bytes) as (stream, size):
        header = read_header(
            stream, size, file=TENSOR_FILE, max_bytes=limits.header_bytes, dtypes=DTYPES
        )
        shapes, mixtures = _check_layers(header, layout)
        if base is not None:
            _check_base(shapes, base, layout, config.base_model_name_or_path)
        training = training_in(files, mixtures)
        num_bytes = 4 * sum(
            mixture.num_experts * (mixture.r * (width_o + width_d) + width_d)
            for mixture, (width_o, width_d) in zip(mixtures.values(), shapes.values(), strict=True)
        )
        if num_bytes > limits.tensor_bytes:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: found tensors of {num_bytes} bytes as float32, "
                f"expected at most {limits.tensor_bytes}"
            )
        digest = hashlib.sha256(layout.canonical)
        tensors: dict[str, Tensor] = {}
        for name, tensor in read_tensors(stream, header, digest.update):
            tensors[name] = tensor.float()
            _check_finite(name, tensors[name])
        digest.update(canonical_defaults(defaults))
    layers = {module: _layer(module, mixtures[module], layout, tensors) for module in shapes}
    _check_effect(mixtures, layers)
    return Checkpoint(
        config=config,
        layers=layers,
        mixtures=mixtures,
        digest=digest.hexdigest(),
        num_bytes=num_bytes,
        defaults=defaults,
        trained_load=None if training is None else training.load,
    )


def _check_layers(
    header: Header, layout: Layout
) -> tuple[dict[str, tuple[int, int]], dict[str, Mixture]]:
    """(O, D) and the mixture of each module, sorted, of a header whose tensors fit each other and
    the config."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, entry in header.tensors.items():
        place = layout.place(name)
        if place is None:
            *parts, last = layout.parts
            choice = f"<{', '.join(parts)} or {last}>"
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: found tensor {show(name)}, expected only "
                f"{layout.tensor_name('<module>', choice)} of the target modules {layout.targets}"
            )
        module, part = place
        found.setdefault(module, {})[part] = entry.shape
    for target in layout.unused(found):
        raise CheckpointFormatError(
            f"{TENSOR_FILE}: found no tensor of target module {show(target)}"
        )
    mixtures = {module: layout.mixture(module) for module in sorted(found)}
    shapes = {
        module: _check_layer(module, found[module], mixture, layout)
        for module, mixture in mixtures.items()
    }
    return shapes, mixtures


def _check_layer(
    module: str, shapes: Mapping[str, tuple[int, ...]], mixture: Mixture, layout: Layout
) -> tuple[int, int]:
    """(O, D) of one layer. D is taken from A, O from B, and everything else must agree."""
    for part in layout.parts:
        if part not in shapes:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: tensor {layout.tensor_name(module, part)} is missing"
            )
    width_o = shapes["B"][-2] if len(shapes["B"]) > 1 else 0
    width_d = shapes["A"][-1] if shapes["A"] else 0
    sizes = {"n": mixture.num_experts, "r": mixture.r, "D": width_d, "O": width_o}
    for part, letters in layout.parts.items():
        if shapes[part] != tuple(sizes[letter] for letter in letters) or 0 in shapes[part]:
            known = ", ".join(f"{x}={sizes[x]}" for x in "nrD" if x in letters + "r")
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: {layout.tensor_name(module, part)}: found shape "
                f"{list(shapes[part])}, expected [{', '.join(letters)}] with {known}"
            )
    return width_o, width_d


def _check_base(
    shapes: Mapping[str, tuple[int, int]], base: BaseShapes, layout: Layout, made_for: str
) -> None:
    expected = layout.linears(base)
    for module in sorted(expected.keys() ^ shapes.keys()):
        what = "no tensors for" if module in expected else "tensors for"
        where = "has" if module in expected else "does not have, its output head left out"
        raise CheckpointMismatchError(
            f"{TENSOR_FILE}: found {what} {module}, a target that the base model {where}"
        )
    for module, (width_o, width_d) in expected.items():
        if shapes[module] != (width_o, width_d):
            found_o, found_d = shapes[module]
            raise CheckpointMismatchError(
                f"{TENSOR_FILE}: {module}: found output and input width {found_o} and {found_d}, "
                f"expected {width_o} and {width_d} as in the base model; "
                f"the adapter was made for {show(made_for)}"
            )


def _layer(
    module: str, mixture: Mixture, layout: Layout, tensors: Mapping[str, Tensor]
) -> LayerWeights:
    found = {part: tensors[layout.tensor_name(module, part)] for part in layout.parts}
    n, r = mixture.num_experts, mixture.r
    a_nrD, b_nOr = found["A"].view(n, r, -1), found["B"].view(n, -1, r)
    # A LoRA has no router: its only expert has the highest logit whatever that is.
    router_nD = found["router"] if "router" in found else torch.zeros_like(a_nrD[:, 0])
    return LayerWeights(a_nrD, b_nOr, router_nD)


def _check_finite(name: str, tensor: Tensor) -> None:
    # Both are NaN where one value is; `isfinite` would take one and a half times the tensor.
    low, high = torch.aminmax(tensor)
    if math.isfinite(low) and math.isfinite(high):
        return
    index = (~torch.isfinite(tensor)).nonzero()[0].tolist()
    raise CheckpointFormatError(
        f"{TENSOR_FILE}: {name}: found {tensor[tuple(index)].item()} at {index}, "
        "expected finite values"
    )


def _check_effect(mixtures: Mapping[str, Mixture], layers: Mapping[str, LayerWeights]) -> None:
    """Sends one random vector through every expert. An adapter whose B_i A_i are all 0 changes
    nothing and is refused, and so is one that overflows, which could only answer NaN."""
    generator = torch.Generator().manual_seed(0)
    any_effect = False
    for module, weights in layers.items():
        x_D = torch.randn(weights.a_nrD.shape[-1], generator=generator)
        y_nO1 = mixtures[module].routing_weight * (
            weights.b_nOr @ (weights.a_nrD @ x_D).unsqueeze(-1)
        )
        if not torch.isfinite(y_nO1).all():
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: {module}: found experts whose output overflows float32, "
                "expected finite outputs for a unit-sized input"
            )
        any_effect = any_effect or bool(y_nO1.any())
    if not any_effect:
        raise CheckpointFormatError(
            f"{TENSOR_FILE}: found B·A = 0 in every expert of every layer, expected an adapter "
            "that changes the base model; was it saved before the first training step?"
        )
