"""Makes the engine that the options of `remix serve` describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remix_runtime.engines.config import FrontConfig
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.fake_config import FakeConfig
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.errors import ConfigError
from remix_runtime.extras import missing_extra

if TYPE_CHECKING:
    from remix_runtime.contracts import Engine

EngineName = Literal["embedded", "vllm", "fake"]

CONFIGS: Mapping[str, type[FrontConfig]] = {
    "embedded": EmbeddedConfig,
    "vllm": VllmConfig,
    "fake": FakeConfig,
}
"""The settings of each engine."""


def make_engine(name: EngineName, base: str | None, given: Mapping[str, Any]) -> Engine:
    """`given`: options by their names, None where the engine's own default is wanted. Raises
    `ConfigError` for an option that another engine has, and without the base that an engine
    needs."""
    options = {option: value for option, value in given.items() if value is not None}
    known = {field.name for field in fields(CONFIGS[name])}
    for option in options:
        if option not in known:
            raise ConfigError(f"--{option.replace('_', '-')}: the {name} engine has no such option")
    if name == "fake":
        from remix_runtime.engines.fake import FakeEngine

        if base is not None:
            options.setdefault("served_model_name", Path(base).name)
        return FakeEngine(FakeConfig(**options))
    if base is None:
        raise ConfigError(
            f"--base: the {name} engine needs the folder of a model, or an id in the local cache; "
            "only --engine fake goes without"
        )
    options["model"] = base
    if name == "embedded":
        from remix_runtime.engines.embedded import EmbeddedEngine

        return EmbeddedEngine(EmbeddedConfig(**options))
    from remix_runtime.engines.vllm.plugin import installed_version

    config = VllmConfig(**options)
    if installed_version() is None:
        raise missing_extra("engine", "vllm", "vllm")
    from remix_runtime.engines.vllm.engine import VllmEngine

    return VllmEngine(config)


def parse_engine_args(text: str | None) -> dict[str, Any] | None:
    """Reads more of vLLM's engine arguments, a JSON object. Raises `ConfigError`."""
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"engine_args: {error}, expected a JSON object") from None
    if not isinstance(found, dict):
        raise ConfigError(f"engine_args: found {text}, expected a JSON object")
    return found
