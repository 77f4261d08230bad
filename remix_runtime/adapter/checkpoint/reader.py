"""Reading an adapter folder: every check that must hold before an engine sees the tensors.

Shape suffixes: n experts, r LoRA rank, D input width, O output width of an adapted linear.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint.config import CONFIG_FILE, canonical_json, parse_config
from remix_runtime.adapter.checkpoint.defaults import canonical_defaults, defaults_in
from remix_runtime.adapter.checkpoint.folder import Folder, open_folder
from remix_runtime.adapter.checkpoint.parity_file import Parity, parity_in
from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.adapter.checkpoint.targets import Targets, target_shapes
from remix_runtime.adapter.checkpoint.tensor_file import Header, read_header, read_tensors
from remix_runtime.adapter.checkpoint.types import (
    DEFAULT_LIMITS,
    AdapterConfig,
    BaseShapes,
    Checkpoint,
    CheckpointLimits,
    LayerWeights,
)
from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import CheckpointFormatError, CheckpointMismatchError

TENSOR_FILE = "adapter_model.safetensors"
DTYPES = frozenset({"F32", "BF16", "F16"})
PARTS = ("A", "B", "router")

_KEY = re.compile(r"base_model\.model\.([A-Za-z0-9_.]+)\.remix_(A|B|router)\.weight")


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

    SHA-256 of `canonical_json(config)`, followed directly by the bytes of
    `adapter_model.safetensors` and by `canonical_defaults(defaults)`. Spelling and order of the
    JSON files, the fields that PEFT adds, README and parity file are no part of it; dtype and
    metadata of the tensor file are.
    """
    digest = hashlib.sha256(canonical_json(config))
    digest.update(tensor_file)
    if defaults is not None:
        digest.update(canonical_defaults(defaults))
    return digest.hexdigest()


def tensor_name(module: str, part: str) -> str:
    """The key of a layer's tensor; `part` is one of `PARTS`."""
    return f"base_model.model.{module}.remix_{part}.weight"


def _checkpoint_in(files: Folder, base: BaseShapes | None, limits: CheckpointLimits) -> Checkpoint:
    config = parse_config(files.read(CONFIG_FILE, max_bytes=limits.config_bytes), limits)
    defaults = defaults_in(files)
    max_bytes = limits.header_bytes + limits.tensor_bytes
    with files.open(TENSOR_FILE, max_bytes=max_bytes) as (stream, size):
        header = read_header(
            stream, size, file=TENSOR_FILE, max_bytes=limits.header_bytes, dtypes=DTYPES
        )
        shapes = _check_layers(header, config)
        if base is not None:
            _check_base(shapes, base, config)
        num_bytes = 4 * sum(math.prod(entry.shape) for entry in header.tensors.values())
        if num_bytes > limits.tensor_bytes:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: found tensors of {num_bytes} bytes as float32, "
                f"expected at most {limits.tensor_bytes}"
            )
        digest = hashlib.sha256(canonical_json(config))
        tensors: dict[str, Tensor] = {}
        for name, tensor in read_tensors(stream, header, digest.update):
            tensors[name] = tensor.float()
            _check_finite(name, tensors[name])
        digest.update(canonical_defaults(defaults))
    layers = {
        module: LayerWeights(*(tensors[tensor_name(module, part)] for part in PARTS))
        for module in shapes
    }
    _check_effect(config, layers)
    return Checkpoint(
        config=config,
        layers=layers,
        digest=digest.hexdigest(),
        num_bytes=num_bytes,
        defaults=defaults,
    )


def _check_layers(header: Header, config: AdapterConfig) -> dict[str, tuple[int, int]]:
    """Module name to (O, D), sorted, of a header whose tensors fit each other and the config."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    targets, unused = Targets(config.target_modules), dict.fromkeys(config.target_modules)
    for name, entry in header.tensors.items():
        match = _KEY.fullmatch(name)
        naming = [] if match is None else [*targets.naming(match[1])]
        if match is None or not naming:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: found tensor {show(name)}, expected only "
                "base_model.model.<module>.remix_<A, B or router>.weight of the target modules "
                f"{', '.join(config.target_modules[:8])}"
            )
        found.setdefault(match[1], {})[match[2]] = entry.shape
        for target in naming:
            unused.pop(target, None)
    for target in unused:
        raise CheckpointFormatError(
            f"{TENSOR_FILE}: found no tensor of target module {show(target)}"
        )
    return {module: _check_layer(module, found[module], config) for module in sorted(found)}


def _check_layer(
    module: str, shapes: Mapping[str, tuple[int, ...]], config: AdapterConfig
) -> tuple[int, int]:
    """(O, D) of one layer. D is taken from A, O from B, and everything else must agree."""
    n, r = config.num_experts, config.r
    for part in PARTS:
        if part not in shapes:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: tensor {tensor_name(module, part)} is missing"
            )
    width_d = shapes["A"][-1] if shapes["A"] else 0
    width_o = shapes["B"][1] if len(shapes["B"]) == 3 else 0
    expected = {"A": (n, r, width_d), "B": (n, width_o, r), "router": (n, width_d)}
    for part, letters in zip(PARTS, ("[n, r, D]", "[n, O, r]", "[n, D]"), strict=True):
        if shapes[part] != expected[part] or 0 in shapes[part]:
            raise CheckpointFormatError(
                f"{TENSOR_FILE}: {tensor_name(module, part)}: found shape {list(shapes[part])}, "
                f"expected {letters} with n={n}, r={r}" + (f", D={width_d}" if part != "B" else "")
            )
    return width_o, width_d


def _check_base(
    shapes: Mapping[str, tuple[int, int]], base: BaseShapes, config: AdapterConfig
) -> None:
    expected = target_shapes(base, config.target_modules)
    for module in sorted(expected.keys() ^ shapes.keys()):
        what = "no tensors for" if module in expected else "tensors for"
        where = "has" if module in expected else "does not have"
        raise CheckpointMismatchError(
            f"{TENSOR_FILE}: found {what} {module}, a target that the base model {where}"
        )
    for module, (width_o, width_d) in expected.items():
        if shapes[module] != (width_o, width_d):
            found_o, found_d = shapes[module]
            raise CheckpointMismatchError(
                f"{TENSOR_FILE}: {module}: found output and input width {found_o} and {found_d}, "
                f"expected {width_o} and {width_d} as in the base model; "
                f"the adapter was made for {show(config.base_model_name_or_path)}"
            )


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


def _check_effect(config: AdapterConfig, layers: Mapping[str, LayerWeights]) -> None:
    """Sends one random vector through every expert. An adapter whose B_i A_i are all 0 changes
    nothing and is refused, and so is one that overflows, which could only answer NaN."""
    generator = torch.Generator().manual_seed(0)
    any_effect = False
    for module, weights in layers.items():
        x_D = torch.randn(weights.a_nrD.shape[-1], generator=generator)
        y_nO1 = config.routing_weight * (weights.b_nOr @ (weights.a_nrD @ x_D).unsqueeze(-1))
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
