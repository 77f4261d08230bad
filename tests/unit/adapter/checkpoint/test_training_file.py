"""`training.json`: read strictly, written back, no part of the adapter's identity."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import (
    TrainingRecord,
    read_checkpoint,
    read_curves,
    write_checkpoint,
)
from remix_runtime.adapter.checkpoint.training_file import (
    MAX_BYTES,
    MAX_POINTS,
    TRAINING_FILE,
    emit_training,
)
from remix_runtime.adapter.checkpoint.writer import put_training
from remix_runtime.cli import run
from remix_runtime.contracts import TrainedLoad
from tests.unit.adapter.checkpoint.adapters import BASE, CONFIG, make_layers, refused

LOAD = TrainedLoad(tokens=10, modules={module: [10, 7, 3] for module in BASE})
CURVES = {
    "step": [1, 2, 7],
    "loss": [2.5, 1.0, 0.5],
    "router_entropy": [1.0, 0.5, 0.0],
    "held_out_loss": [(2, 1.5), (7, 0.75)],
}
RECORD = TrainingRecord(load=LOAD, curves=CURVES)
MODULE = min(BASE)


def content() -> dict[str, Any]:
    return json.loads(emit_training(RECORD))


def put(folder: Path, value: object) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    (folder / TRAINING_FILE).write_bytes(data)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="", training=RECORD)
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.digest == digest
    assert checkpoint.trained_load is not None
    assert checkpoint.trained_load.tokens == 10
    found = {name: list(counts) for name, counts in checkpoint.trained_load.modules.items()}
    assert found == LOAD.modules
    assert read_curves(tmp_path / "a") == CURVES


def test_it_is_no_part_of_the_identity_and_may_be_put_beside_an_adapter(folder: Path) -> None:
    digest = read_checkpoint(folder).digest
    assert read_checkpoint(folder).trained_load is None
    assert read_curves(folder) == {}
    before = set(folder.iterdir())
    put_training(folder, RECORD)
    assert set(folder.iterdir()) - before == {folder / TRAINING_FILE}
    checkpoint = read_checkpoint(folder)
    assert checkpoint.digest == digest
    assert checkpoint.trained_load is not None
    put_training(folder, TrainingRecord(curves=CURVES))  # in the place of the other
    assert read_checkpoint(folder).trained_load is None
    assert read_curves(folder) == CURVES


def test_a_record_that_does_not_fit_is_not_put(folder: Path) -> None:
    put_training(folder, RECORD)
    before = (folder / TRAINING_FILE).read_bytes()
    wrong = TrainedLoad(tokens=10, modules={MODULE: [10, 7, 3]})
    with pytest.raises(Exception, match="is missing"):
        put_training(folder, TrainingRecord(load=wrong))
    assert (folder / TRAINING_FILE).read_bytes() == before
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("left_out", ["expert_load", "curves"])
def test_parts_may_be_left_out(folder: Path, left_out: str) -> None:
    value = content()
    del value[left_out]
    put(folder, value)
    assert (read_checkpoint(folder).trained_load is None) == (left_out == "expert_load")
    assert (read_curves(folder) == {}) == (left_out == "curves")


def edited(*path: str | int, value: object) -> dict[str, Any]:
    """The content with something else in one place."""
    result = place = content()
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return result


def without(*path: str) -> dict[str, Any]:
    result = place = content()
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return result


MODULES = ("expert_load", "modules")


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (b"", ("not valid JSON",)),
        (b"[]", ("expected a JSON object",)),
        (b'{"format_version": 1, "curves": {"step": [1], "loss": [NaN]}}', ("finite",)),
        (b'{"format_version": 1, "format_version": 1}', ("format_version", "twice")),
        (b" " * (MAX_BYTES + 1), (str(MAX_BYTES),)),
        ({}, ("format_version", "None")),
        (edited("format_version", value=2), ("format_version", "2")),
        (edited("format_version", value=True), ("format_version", "True")),
        (edited("more", value=1), ("'more'", "expert_load")),
        (edited("expert_load", value=None), ("expert_load", "None")),
        (edited("expert_load", "extra", value=1), ("expert_load.extra",)),
        (edited("expert_load", "tokens", value=0), ("expert_load.tokens", "0")),
        (edited("expert_load", "tokens", value=10.0), ("expert_load.tokens", "10.0")),
        (without("expert_load", "tokens"), ("expert_load.tokens", "None")),
        (without(*MODULES), ("expert_load.modules", "None")),
        (without(*MODULES, MODULE), (MODULE, "is missing")),
        (edited(*MODULES, "model.layers.9.mlp.up_proj", value=[10, 7, 3]), ("none of the",)),
        (edited(*MODULES, MODULE, value=[10, 10]), (MODULE, "3 counts")),
        (edited(*MODULES, MODULE, value=[10, 7, 3, 0]), (MODULE, "3 counts")),
        (edited(*MODULES, MODULE, value=[11, 7, 2]), (MODULE, "11", "0 to 10")),
        (edited(*MODULES, MODULE, value=[10, 11, -1]), (MODULE, "11")),
        (edited(*MODULES, MODULE, value=[10, 7, True]), (MODULE, "True")),
        (edited(*MODULES, MODULE, value=[10, 7, 3.0]), (MODULE, "3.0")),
        (edited(*MODULES, MODULE, value=[10, 7, 2]), (MODULE, "19", "20")),
        (edited(*MODULES, MODULE, value=[10**400, 0, 0]), (MODULE, "0 to 10")),
        (edited("curves", value=[]), ("curves", "object")),
        (edited("curves", value={f"c{i}": [] for i in range(33)}), ("33 curves",)),
        (edited("curves", "Loss", value=[1.0, 1.0, 1.0]), ("Loss", "lower-case")),
        (edited("curves", "loss", value=[1.0]), ("curves.loss", "3")),
        (edited("curves", "loss", value=[1.0, "x", 2.0]), ("curves.loss", "'x'")),
        (edited("curves", "loss", value=[1.0, True, 2.0]), ("curves.loss", "True")),
        (edited("curves", "loss", value=[1.0, 10**400, 2.0]), ("curves.loss", "finite")),
        (edited("curves", "loss", value={}), ("curves.loss", "list")),
        (edited("curves", "step", value=[1, 1, 2]), ("curves.step", "ascending")),
        (edited("curves", "step", value=[-1, 1, 2]), ("curves.step", "-1")),
        (edited("curves", "step", value=[1.0, 2, 3]), ("curves.step", "1.0")),
        (edited("curves", "step", value=list(range(MAX_POINTS + 1))), (str(MAX_POINTS),)),
        (edited("curves", "held_out_loss", value=[[1]]), ("held_out_loss", "pairs")),
        (edited("curves", "held_out_loss", value=[[2, 1.0], [1, 1.0]]), ("ascending",)),
        (edited("curves", "held_out_loss", value=[[1, None]]), ("held_out_loss", "finite")),
    ],
)
def test_what_is_wrong_is_named(folder: Path, value: object, parts: tuple[str, ...]) -> None:
    put(folder, value)
    refused(folder, TRAINING_FILE, *parts)


def test_remix_check_refuses_what_an_import_does(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder, edited("expert_load", "tokens", value=0))
    assert run(["check", str(folder)]) == 1
    assert "expert_load.tokens" in capsys.readouterr().err


@pytest.mark.parametrize("change", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_it_must_be_a_file(folder: Path, tmp_path: Path, change: Callable[[Path], object]) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    change(copy / TRAINING_FILE)
    refused(copy, TRAINING_FILE)
