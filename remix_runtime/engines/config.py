"""What every engine is started with.

Each field but `model` is an option of `remix serve`, whose help is the text beside its type.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from remix_runtime.contracts import MAX_MODEL_NAME
from remix_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontConfig:
    """What an engine shows to its callers. Raises `ConfigError` on a value out of range."""

    served_model_name: Annotated[
        str | None, "The base's name in the API; the last part of its folder or id by default."
    ] = None
    max_running: Annotated[int, "Requests that generate at the same time."] = 32
    max_waiting: Annotated[
        int, "Requests that wait for a place; one more gets 503, if its tenant has its share."
    ] = 256
    max_model_len: Annotated[
        int | None, "Prompt and completion tokens of a request; the model's limit by default."
    ] = None

    @property
    def max_requests(self) -> int:
        """The places of the engine and of its queue."""
        return self.max_running + self.max_waiting

    def __post_init__(self) -> None:
        name = self.served_model_name
        if name is not None and not (0 < len(name) <= MAX_MODEL_NAME and name.isprintable()):
            raise ConfigError(
                f"served_model_name: found {name!r}, expected up to {MAX_MODEL_NAME} printable "
                "characters"
            )
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise ConfigError(f"{setting.name}: found {value}, expected at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(FrontConfig):
    """What an engine with a model is started with."""

    model: str
    """A folder, or the id of a model in the local Hugging Face cache."""
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        "Type of weights and activations. `auto` is float32 on the CPU and bfloat16 on CUDA.",
    ] = "auto"
