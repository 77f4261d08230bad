"""Other places that a run is looked at, as Weights & Biases and MLflow, by accelerate's trackers.

metrics.jsonl and TensorBoard are written in any case. A tracker that fails while a run goes on is
told of once: hours of training do not end because a service is away.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from remix_runtime.base.folder import one_line
from remix_runtime.errors import ConfigError

TrackerName = Literal[
    "aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "trackio", "wandb"
]
"""As accelerate calls them, which is what their packages are called."""


class Trackers:
    """Hands a run's settings and metrics to trackers."""

    def __init__(
        self,
        names: Sequence[TrackerName],
        folder: Path,
        settings: Mapping[str, Any],
        console: Console,
    ) -> None:
        """`folder` is where those write that write files, and what a run is called. Raises
        `ConfigError` for one that is not installed, or that does not begin."""
        self._console = console
        self._failed: set[str] = set()
        self._trackers = {name: _begun(name, folder, settings) for name in names}

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._each("log", dict(values), step=step)

    def finish(self) -> None:
        self._each("finish")

    def _each(self, what: str, *args: Any, **kwargs: Any) -> None:
        for name, tracker in self._trackers.items():
            try:
                getattr(tracker, what)(*args, **kwargs)
            except Exception as error:  # which depends on the service
                if name not in self._failed:
                    self._failed.add(name)
                    self._console.print(
                        f"{name} does not take the metrics: {one_line(error)}", markup=False
                    )


def _begun(name: TrackerName, folder: Path, settings: Mapping[str, Any]) -> Any:
    if importlib.util.find_spec(name) is None:
        raise ConfigError(f"report_to: {name} is not installed; pip install {name}")
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # which trackers ask whether this process is the first
    kind = LOGGER_TYPE_TO_CLASS[name]
    needs_folder = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
    try:
        tracker = kind(folder.resolve().name, **needs_folder)
        tracker.start()
        tracker.store_init_configuration(dict(settings))
    except Exception as error:  # as above: no account, no network
        raise ConfigError(f"report_to: {name} does not begin: {one_line(error)}") from None
    return tracker
