"""Makes the engine that the options of `remix serve` describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from remix_runtime.engines.by_name import CONFIGS as INNER
from remix_runtime.engines.by_name import make
from remix_runtime.engines.config import FrontConfig
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.errors import ConfigError
from remix_runtime.extras import missing_extra, require_extra

if TYPE_CHECKING:
    from remix_runtime.contracts import Engine

EngineName = Literal["embedded", "vllm", "ray", "fake"]

CONFIGS: Mapping[str, type[Any]] = {
    "embedded": INNER["embedded"],
    "vllm": INNER["vllm"],
    "ray": RayConfig,
    "fake": INNER["fake"],
}
"""The settings of each engine; the Ray engine has those of the engine in its replicas too."""


def make_engine(name: EngineName, base: str | None, given: Mapping[str, Any]) -> Engine:
    """`given`: options by their names, None where the engine's own default is wanted. Raises
    `ConfigError` for an option that another engine has, and without the base that an engine
    needs."""
    options = {option: value for option, value in given.items() if value is not None}
    of_ray = {field.name for field in fields(RayConfig)} if name == "ray" else set()
    ray = {option: options.pop(option) for option in of_ray & options.keys()}
    computing = ray.get("engine_of", "embedded") if name == "ray" else name
    known = {field.name for field in fields(CONFIGS[computing])}
    for option in options:
        if option not in known:
            raise ConfigError(
                f"--{option.replace('_', '-')}: the {computing} engine has no such option"
            )
    if computing == "fake":
        if base is not None:
            options.setdefault("served_model_name", Path(base).name)
    elif base is None:
        raise ConfigError(
            f"--base: the {computing} engine needs the folder of a model, or an id in the local "
            "cache; only --engine fake goes without"
        )
    else:
        options["model"] = base
    if name == "ray":
        return _ray_engine(RayConfig(**ray), CONFIGS[computing](**options))
    config = CONFIGS[computing](**options)
    if isinstance(config, VllmConfig):
        _require_vllm()
    return make(config)


def _ray_engine(config: RayConfig, inner: FrontConfig) -> Engine:
    require_extra("engine", "ray", "ray")
    if config.engine_of == "vllm" and config.ray_address is None:
        _require_vllm()
    from remix_runtime.engines.ray.engine import RayEngine

    return RayEngine(config, inner)


def _require_vllm() -> None:
    from remix_runtime.engines.vllm.plugin import installed_version

    if installed_version() is None:
        raise missing_extra("engine", "vllm", "vllm")


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
