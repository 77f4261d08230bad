"""Settings of the Ray engine, validated once; the engine in its replicas has its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from remix_runtime.errors import ConfigError

InnerName = Literal["embedded", "vllm", "fake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RayConfig:
    """Where replicas run and how many. Raises `ConfigError` on a value out of range."""

    engine_of: Annotated[
        InnerName, "The engine in each replica; its options are given beside, for each replica."
    ] = "embedded"
    replicas: Annotated[int, "Replicas, or the fewest of them with --max-replicas."] = 1
    max_replicas: Annotated[
        int | None, "Ray starts more replicas under load, up to so many; by default it does not."
    ] = None
    target_requests: Annotated[
        float | None,
        "Requests of a replica, running and waiting, that scaling aims at; three quarters of "
        "--max-running by default.",
    ] = None
    scale_up_seconds: Annotated[float, "Seconds of load before a replica is added."] = 10.0
    scale_down_seconds: Annotated[float, "Seconds of calm before one is taken away."] = 300.0
    ray_address: Annotated[
        str | None,
        "A running Ray cluster's address, as HOST:6379, or `auto` on one of its nodes; by default "
        "Ray is started on this machine, for this server alone.",
    ] = None
    ray_app: Annotated[
        str,
        "Name of the replicas' application on the cluster; servers with the same name share it.",
    ] = "remix"
    replica_cpus: Annotated[
        float | None,
        "Cores of a replica; on this machine its share of the cores by default, on a cluster 1.",
    ] = None
    replica_gpus: Annotated[
        float | None, "GPUs of a replica; those that its engine's options ask for by default."
    ] = None
    replica_adapters: Annotated[
        int, "Adapters that a replica keeps; the one unused longest ago leaves for a new one."
    ] = 64

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int) and value < 1:
                raise ConfigError(f"{setting.name}: found {value}, expected at least 1")
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{setting.name}: found {value:g}, expected 0 or more")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError(
                f"max_replicas: found {self.max_replicas}, expected at least replicas "
                f"({self.replicas})"
            )
        if self.target_requests is not None and not self.target_requests > 0:
            raise ConfigError("target_requests: found 0, expected more")
        if self.ray_address is not None and self.ray_address.startswith("ray://"):
            raise ConfigError(
                f"ray_address: found {self.ray_address}: Ray's client cannot stream; expected "
                "HOST:6379, or auto on a node of the cluster"
            )
        if not (0 < len(self.ray_app) <= 64 and self.ray_app.replace("-", "").isalnum()):
            raise ConfigError(
                f"ray_app: found {self.ray_app[:100]!r}, expected up to 64 letters, digits and "
                "dashes"
            )

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.replicas
