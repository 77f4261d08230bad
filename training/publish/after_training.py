"""Publishes what a run has trained. What can be wrong with that is known before the run."""

from __future__ import annotations

import gc
from pathlib import Path

from rich.console import Console

from remix_runtime.admin_api import admin_api
from remix_runtime.errors import ConfigError, RemixError, TrainingError
from training.config import TrainConfig
from training.publish.losses import HeldOut
from training.publish.place import Place
from training.publish.publication import Plan, publish


class Publisher:
    """The publication at the end of a run. Raises `ConfigError` for one that has nothing to publish
    or to compare it on."""

    def __init__(
        self, config: TrainConfig, place: str, url: str, plan: Plan, console: Console
    ) -> None:
        if config.method == "softmax":
            raise ConfigError("publish: found with method softmax, which writes no adapter")
        self._base = config.base
        self._place = place
        self._url = url
        self._plan = plan
        self._console = console
        self._held_out = HeldOut.of(config)

    def require_ready(self) -> None:
        """Raises `AdminError`, `ConfigError`, `DataError`."""
        with admin_api(self._url) as admin:
            Place.parse(admin, self._place).require_ready(self._base)
        self._held_out.require_enough()

    def publish(self, adapter: Path) -> int:
        """The exit code. Raises `TrainingError`; the adapter stays in its folder."""
        gc.collect()  # the model that was trained: the serving engine loads the base again
        try:
            with admin_api(self._url) as admin:
                place = Place.parse(admin, self._place)
                return publish(
                    adapter, place, self._base, self._held_out, self._plan, self._console
                )
        except RemixError as error:
            raise TrainingError(
                f"{adapter} is written, but not published: {error}; try again with: "
                f"remix publish {adapter} {self._place} HELD-OUT-ROWS"
            ) from None
