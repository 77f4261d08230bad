"""Compares a base's tensors with the model that its configuration describes, by headers alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from remix_runtime.base.folder import CONFIG, one_line, read_json, wrong
from remix_runtime.base.quiet import quiet
from remix_runtime.errors import ConfigError

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class _Header(Tensor):
    """A tensor of a shape that stays without data wherever it is moved."""

    def to(self, *args: Any, **kwargs: Any) -> _Header:
        return self


def require_whole(folder: Path, config: PretrainedConfig) -> None:
    """Raises `ConfigError` unless the folder's tensors are the model's, in names and shapes."""
    network = without_weights(config)
    headers = _headers(folder, frozenset(name for name, _ in network.named_parameters()))
    _require_about_as_large(folder, network, headers)
    try:
        with quiet():
            # transformers' own loader: it knows how checkpoints of each type name their tensors.
            _, report = type(network).from_pretrained(
                None,
                config=network.config,
                state_dict=headers,
                ignore_mismatched_sizes=True,  # they are in the report
                output_loading_info=True,
            )
    except Exception as error:  # which depends on the model's type and on what is wrong
        raise wrong(folder, one_line(error)) from None
    require_clean(folder, report)


def require_clean(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for anything in transformers' report of loading a model."""
    if odd := sorted(report["mismatched_keys"]):
        name, found, expected = odd[0]
        raise _wrong_shape(folder, name, found, expected, len(odd) - 1)
    if odd := sorted(report["missing_keys"]):
        raise wrong(folder, f"found no tensor {_first(odd)}, expected it by {CONFIG}")
    if odd := sorted(report["unexpected_keys"]):
        raise wrong(folder, f"found the tensor {_first(odd)}, which {CONFIG} has no place for")
    if report["error_msgs"]:
        raise wrong(folder, " ".join(str(report["error_msgs"][0]).split()))


def without_weights(config: PretrainedConfig) -> PreTrainedModel:
    """Builds a model's modules without memory for their weights. Raises `ConfigError` for a
    configuration that makes no model."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=False
            )
    except Exception as error:  # which depends on the model's type and on what is wrong
        file = Path(config.name_or_path) / CONFIG
        raise wrong(file, f"makes no model: {one_line(error)}") from None
    return model


def num_parameters(folder: Path) -> int:
    """The numbers in a base's files. Raises `ConfigError`."""
    return sum(tensor.numel() for tensor in _headers(folder, ()).values())


class WeightBytes(NamedTuple):
    """What a base's weights take at most, by the setting `weights`. A head that is the embedding's
    own takes its memory again."""

    stored: float
    float32: float
    int8: float


def weight_bytes(folder: Path, config: PretrainedConfig, *, int8_bytes: float) -> WeightBytes:
    """`int8_bytes`: of a linear's weight in 8 bits. Raises `ConfigError`."""
    network, headers = without_weights(config), _headers(folder, ())
    largest = max((tensor.element_size() for tensor in headers.values()), default=4)
    stored = wide = int8 = 0.0
    for module_name, module in network.named_modules():
        is_linear = isinstance(module, nn.Linear)
        for name, parameter in module.named_parameters(recurse=False):
            size, count = 4, parameter.numel()
            if parameter.ndim > 1 and (is_linear or isinstance(module, nn.Embedding)):
                found = headers.get(f"{module_name}.{name}")
                size = min(largest if found is None else found.element_size(), 4)
            stored += size * count
            wide += 4 * count
            int8 += (int8_bytes if is_linear and parameter.ndim > 1 else size) * count
    return WeightBytes(stored, wide, int8)


def tensor_files(folder: Path) -> list[Path]:
    """The files with tensors, which transformers reads."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if not index.is_file():
        others = sorted(f.name for f in folder.iterdir() if f.suffix in (".bin", ".gguf", ".pth"))
        found = f"found {', '.join(others)}, " if others else ""
        raise wrong(folder, f"{found}expected {_WEIGHTS} or {_INDEX}: only safetensors are read")
    fields = read_json(index)
    for field in ("weight_map", "metadata"):
        if not isinstance(fields.get(field), dict) or not fields["weight_map"]:
            raise wrong(index, f"{field}: found {fields.get(field)!r}, expected an object")
    files = []
    for tensor, name in sorted(fields["weight_map"].items()):
        if not isinstance(name, str) or name != Path(name).name:
            raise wrong(index, f"weight_map: {tensor}: found {name!r}, expected a file's name")
        if folder / name not in files:
            files.append(folder / name)
    for file in files:
        if not file.is_file():
            raise wrong(file, f"there is no such file, and {_INDEX} names it")
    return files


def _headers(folder: Path, parameters: Collection[str]) -> dict[str, Tensor]:
    headers: dict[str, Tensor] = {}
    for file in tensor_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                    found = tensors.get_slice(name)
                    dtype = found.get_dtype()
                    if name in parameters and dtype not in _DTYPES:
                        expected = f"one of {', '.join(_DTYPES)}"
                        raise wrong(file, f"{name}: found dtype {dtype}, expected {expected}")
                    kind = _DTYPES.get(dtype, torch.float32)
                    empty = torch.empty(found.get_shape(), dtype=kind, device="meta")
                    headers[name] = empty.as_subclass(_Header)
        except (OSError, SafetensorError) as error:
            raise wrong(file, f"cannot be read: {one_line(error)}") from None
    return headers


def _require_about_as_large(
    folder: Path, network: PreTrainedModel, headers: Mapping[str, Tensor]
) -> None:
    """Raises `ConfigError` for a model of far more parameters than are stored: the loader makes up
    what is missing, which could take any memory."""
    stored = sum(tensor.numel() for tensor in headers.values())
    parameters = dict(network.named_parameters())
    if sum(parameter.numel() for parameter in parameters.values()) <= 2 * stored:
        return
    for name, parameter in sorted(parameters.items(), key=lambda item: -item[1].numel()):
        if name in headers and headers[name].shape != parameter.shape:
            raise _wrong_shape(folder, name, headers[name].shape, parameter.shape)
    missing = sorted(parameters.keys() - headers.keys())
    raise wrong(folder, f"found no tensor {_first(missing)}, expected it by {CONFIG}")


def _wrong_shape(
    folder: Path, name: str, found: Sequence[int], expected: Sequence[int], more: int = 0
) -> ConfigError:
    others = f" (and {more} more)" if more else ""
    return wrong(
        folder, f"{name}{others}: found shape {list(found)}, expected {list(expected)} by {CONFIG}"
    )


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
