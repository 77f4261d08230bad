"""`adapter_config.json`: strict parsing, canonical writing.

Fields of format version 1, all required: `peft_type` ("REMIX"), `format_version`, `task_type`
("CAUSAL_LM"), `base_model_name_or_path`, `num_experts`, `top_k`, `r`, `routing_weight` (the number
ω), `target_modules`. PEFT writes four more: `revision` (of the base model), `auto_mapping`,
`inference_mode` and `peft_version`. Those and a field that a newer PEFT knows may be null, which
is as if they were not there; a field of another name that asks for something is refused. None of
them is part of the identity.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.adapter.checkpoint.types import (
    DEFAULT_LIMITS,
    FORMAT_VERSION,
    AdapterConfig,
    CheckpointLimits,
)
from remix_runtime.errors import CheckpointFormatError

CONFIG_FILE = "adapter_config.json"
PEFT_TYPE = "REMIX"

_FIELDS = (
    "peft_type",
    "format_version",
    "task_type",
    "base_model_name_or_path",
    "num_experts",
    "top_k",
    "r",
    "routing_weight",
    "target_modules",
)
_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_MAX_TEXT = 1024
_MAX_ROUTING_WEIGHT = 1e6


def parse_config(data: bytes, limits: CheckpointLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration in the bytes of `adapter_config.json`.

    Raises `CheckpointFormatError` that names the field, what was found and what was expected.
    """
    fields = parse_object(data, file=CONFIG_FILE)
    if fields.get("peft_type") != PEFT_TYPE:  # first: tells a LoRA folder from a broken ReMix one
        raise _wrong(fields, "peft_type", f'"{PEFT_TYPE}"')
    for name in _FIELDS:
        if name not in fields:
            raise CheckpointFormatError(f"{CONFIG_FILE}: field {name} is missing")
    others = {n: value for n, value in fields.items() if n not in _FIELDS and value is not None}
    revision = _take_peft_fields(others)
    for name in others:
        raise CheckpointFormatError(
            f"{CONFIG_FILE}: found field {show(name)}, expected only {', '.join(_FIELDS)}"
        )
    _integer(fields, "format_version", FORMAT_VERSION, FORMAT_VERSION)
    if fields["task_type"] != "CAUSAL_LM":
        raise _wrong(fields, "task_type", '"CAUSAL_LM"')
    num_experts = _integer(fields, "num_experts", 1, limits.num_experts)
    return AdapterConfig(
        base_model_name_or_path=_text(fields, "base_model_name_or_path"),
        num_experts=num_experts,
        top_k=_integer(fields, "top_k", 1, num_experts),
        r=_integer(fields, "r", 1, limits.r),
        routing_weight=_routing_weight(fields),
        target_modules=_target_modules(fields, limits.target_modules),
        revision=revision,
    )


def canonical_json(config: AdapterConfig) -> bytes:
    """The one byte string that stands for `config` in the digest: the nine fields, keys sorted, no
    spaces, ASCII with \\u escapes, ω in Python's shortest float form, target_modules sorted."""
    return json.dumps(_fields(config), sort_keys=True, separators=(",", ":")).encode("ascii")


def emit_config(config: AdapterConfig, limits: CheckpointLimits = DEFAULT_LIMITS) -> bytes:
    """The file's content. Raises `CheckpointFormatError` where `parse_config` would."""
    fields = _fields(config)
    if config.revision is not None:
        fields["revision"] = config.revision
    data = json.dumps(fields, sort_keys=True, indent=2).encode("ascii") + b"\n"
    parse_config(data, limits)
    return data


def _fields(config: AdapterConfig) -> dict[str, object]:
    return {
        "peft_type": PEFT_TYPE,
        "format_version": FORMAT_VERSION,
        "task_type": config.task_type,
        "base_model_name_or_path": config.base_model_name_or_path,
        "num_experts": config.num_experts,
        "top_k": config.top_k,
        "r": config.r,
        "routing_weight": config.routing_weight,
        "target_modules": sorted(config.target_modules),
    }


def _wrong(fields: Mapping[str, object], name: str, expected: str) -> CheckpointFormatError:
    found = show(fields[name]) if name in fields else "nothing"
    return CheckpointFormatError(f"{CONFIG_FILE}: {name}: found {found}, expected {expected}")


def _take_peft_fields(fields: dict[str, object]) -> str | None:
    """Removes the fields that PEFT writes from those that are not null; returns `revision`."""
    if "auto_mapping" in fields:
        raise _wrong(fields, "auto_mapping", "null")  # it would name Python classes to import
    if not isinstance(fields.get("inference_mode", True), bool):
        raise _wrong(fields, "inference_mode", "true, false or null")
    if not isinstance(fields.get("peft_version", ""), str):
        raise _wrong(fields, "peft_version", "text or null")
    revision = _text(fields, "revision") if "revision" in fields else None
    for name in ("inference_mode", "peft_version", "revision"):
        fields.pop(name, None)
    return revision


def _integer(fields: Mapping[str, object], name: str, low: int, high: int) -> int:
    value = fields[name]
    expected = str(low) if low == high else f"an integer from {low} to {high}"
    # bool is an int in Python, not in JSON.
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(fields, name, expected)
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields[name]
    # isprintable also keeps out NUL, line ends and lone surrogates.
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_TEXT:
        raise _wrong(fields, name, f"printable text of at most {_MAX_TEXT} characters")
    return value


def _routing_weight(fields: Mapping[str, object]) -> float:
    value = fields["routing_weight"]
    # Compared before float(): Python compares integers of any size, but converts only some.
    if (
        not isinstance(value, int | float)
        or isinstance(value, bool)
        or not 0 < value <= _MAX_ROUTING_WEIGHT
    ):
        expected = f"a number above 0 and at most {_MAX_ROUTING_WEIGHT:g}"
        raise _wrong(fields, "routing_weight", expected)
    return float(value)


def _target_modules(fields: Mapping[str, object], limit: int) -> tuple[str, ...]:
    value = fields["target_modules"]
    if not isinstance(value, list) or not 1 <= len(value) <= limit:
        raise _wrong(fields, "target_modules", f"a list of 1 to {limit} module names")
    names: list[str] = []
    for item in value:
        if not isinstance(item, str) or len(item) > _MAX_TEXT or not _MODULE.fullmatch(item):
            raise CheckpointFormatError(
                f"{CONFIG_FILE}: target_modules: found {show(item)}, expected a module name of "
                "letters, digits, underscores and dots"
            )
        names.append(item)
    if len(set(names)) != len(names):
        raise _wrong(fields, "target_modules", "every name once")
    return tuple(sorted(names))
