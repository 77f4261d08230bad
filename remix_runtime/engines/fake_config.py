"""Settings of the fake engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from remix_runtime.engines.config import FrontConfig
from remix_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeConfig(FrontConfig):
    """Sizes and speed of a `FakeEngine`: small, so that a test reaches them."""

    max_running: int = 4
    max_waiting: int = 8
    max_model_len: int = 512
    cached_tokens: Annotated[
        int | None, "Cached tokens that are told of every longer prompt; none are by default."
    ] = None
    host_adapters: int = 1000
    """Adapters in memory at once, pinned ones apart; others are read from their folders again."""
    prefill_seconds: Annotated[float, "Time that a prompt takes."] = 0.0
    token_seconds: Annotated[float, "Time that each token takes."] = 0.0

    def __post_init__(self) -> None:
        FrontConfig.__post_init__(self)
        for name in ("prefill_seconds", "token_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name}: found {value:g}, expected 0 or more")
