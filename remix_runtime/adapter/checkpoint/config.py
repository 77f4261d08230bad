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

from remix_runtime.adapter.checkpoint.fields import (
    CONFIG_FILE,
    Fields,
    integer,
    module_names,
    number,
    take_peft_fields,
    text,
    wrong,
)
from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.adapter.checkpoint.types import (
    DEFAULT_LIMITS,
    FORMAT_VERSION,
    AdapterConfig,
    CheckpointLimits,
)
from remix_runtime.errors import CheckpointFormatError

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
_MAX_ROUTING_WEIGHT = 1e6


def parse_config(data: bytes, limits: CheckpointLimits = DEFAULT_LIMITS) -> AdapterConfig:
    """The configuration in the bytes of `adapter_config.json`.

    Raises `CheckpointFormatError` that names the field, what was found and what was expected.
    """
    return remix_config(parse_object(data, file=CONFIG_FILE), limits)


def remix_config(fields: Fields, limits: CheckpointLimits) -> AdapterConfig:
    """`parse_config` of the file's JSON object."""
    if fields.get("peft_type") != PEFT_TYPE:  # first: tells a LoRA folder from a broken ReMix one
        raise wrong(fields, "peft_type", f'"{PEFT_TYPE}"')
    for name in _FIELDS:
        if name not in fields:
            raise CheckpointFormatError(f"{CONFIG_FILE}: field {name} is missing")
    others = {n: value for n, value in fields.items() if n not in _FIELDS and value is not None}
    revision = take_peft_fields(others)
    for name in others:
        raise CheckpointFormatError(
            f"{CONFIG_FILE}: found field {show(name)}, expected only {', '.join(_FIELDS)}"
        )
    integer(fields, "format_version", FORMAT_VERSION, FORMAT_VERSION)
    if fields["task_type"] != "CAUSAL_LM":
        raise wrong(fields, "task_type", '"CAUSAL_LM"')
    num_experts = integer(fields, "num_experts", 1, limits.num_experts)
    return AdapterConfig(
        base_model_name_or_path=text(fields, "base_model_name_or_path"),
        num_experts=num_experts,
        top_k=integer(fields, "top_k", 1, num_experts),
        r=integer(fields, "r", 1, limits.r),
        routing_weight=number(fields, "routing_weight", _MAX_ROUTING_WEIGHT),
        target_modules=tuple(
            sorted(module_names(fields, "target_modules", 1, limits.target_modules))
        ),
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
