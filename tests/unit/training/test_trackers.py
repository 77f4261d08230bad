"""Trackers get what metrics.jsonl gets; one that fails does not end a run."""

from __future__ import annotations

import importlib.util
from typing import Any

import accelerate.tracking
import pytest
from rich.console import Console

from remix_runtime.errors import ConfigError
from tests.unit.training.conftest import MakeConfig
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


class Tracker:
    """As accelerate's are."""

    requires_logging_directory = True
    calls: list[tuple[Any, ...]]
    fails_at = 0

    def __init__(self, run_name: str, logging_dir: str) -> None:
        type(self).calls = [("name", run_name, logging_dir)]

    def start(self) -> None:
        if self.fails_at == -1:
            raise OSError("no\nkey")
        self.calls.append(("start",))

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(("settings", values["top_k"]))

    def log(self, values: dict[str, float], step: int) -> None:
        if 0 < self.fails_at <= step:
            raise OSError("away")
        self.calls.append(("log", step, values))

    def finish(self) -> None:
        self.calls.append(("finish",))


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[Tracker]:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *a: object() if name == "wandb" else found(name, *a),
    )
    kind = type("Kind", (Tracker,), {})
    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "wandb", kind)
    return kind


def test_a_tracker_gets_every_step(make_config: MakeConfig, tracker: type[Tracker]) -> None:
    config = make_config(report_to=["wandb"])
    rows = run_training(config).rows
    name, start, settings, *logs, finish = tracker.calls
    assert name == ("name", "run", str(config.output))
    assert (start, settings, finish) == (("start",), ("settings", 2), ("finish",))
    assert [step for _, step, _ in logs] == [1, 2, 3, 4, 5, 6]
    for row, (_, _, values) in zip(rows, logs, strict=True):
        assert values["loss"] == row["loss"]
        assert values["expert_load/3"] == row["expert_load"][3]


def test_one_that_fails_on_the_way_does_not_end_the_run(
    make_config: MakeConfig, tracker: type[Tracker], capsys: pytest.CaptureFixture[str]
) -> None:
    tracker.fails_at = 3
    result = run_training(make_config(report_to=["wandb"]), console=Console(width=200))
    assert len(result.rows) == 6
    assert [call[1] for call in tracker.calls if call[0] == "log"] == [1, 2]
    assert tracker.calls[-1] == ("finish",)
    assert capsys.readouterr().out.count("wandb does not take the metrics: away") == 1


def test_one_that_does_not_begin_is_told_before_a_step(
    make_config: MakeConfig, tracker: type[Tracker]
) -> None:
    tracker.fails_at = -1
    config = make_config(report_to=["wandb"])
    with pytest.raises(ConfigError, match="report_to: wandb does not begin: no key"):
        run_training(config)
    assert not (config.output / "metrics.jsonl").exists()


def test_one_that_is_not_installed_is_named(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="aim is not installed; pip install aim"):
        run_training(make_config(report_to=["aim"]))
    with pytest.raises(ConfigError, match=r"report_to\.0: found 'excel'"):
        make_config(report_to=["excel"])
