"""A run that is killed and resumed ends with the same bits as one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from remix_runtime.errors import TrainingError
from tests.forkserver import context
from tests.models import tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.killed import train_until
from training.config import TrainConfig
from training.data import read_examples
from training.log import METRICS, read_metrics
from training.run import STATE, run_training
from training.state import KEPT, state_files
from training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

STEPS = 50
CHILD = """
import sys
from pathlib import Path
from training.config import load_config
from training.run import run_training
run_training(load_config(Path(sys.argv[1])))
"""


def write_config(path: Path, config: TrainConfig) -> Path:
    settings = config.model_dump(mode="json", exclude_defaults=True)
    path.write_text(yaml.safe_dump(settings))
    return path


def test_a_run_killed_at_any_step_and_resumed_ends_with_the_same_bits(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    settings = {"steps": STEPS, "checkpoint_every": 7, "eval_every": 20}
    killed = make_config(output=str(tmp_path / "killed"), **settings)
    whole = make_config(output=str(tmp_path / "whole"), **settings)
    at_step = random.randrange(8, STEPS // 2)
    config_file = write_config(tmp_path / "killed.yaml", killed)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(config_file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )
    metrics = killed.output / METRICS
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= at_step):
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (killed.output / "adapter").exists()
    saved = int(state_files(killed.output / STATE)[-1].stem.removeprefix("state-"))
    assert 0 < saved < STEPS

    resumed, reference = run_training(killed, resume=True), run_training(whole)
    assert resumed.digest == reference.digest
    ends = [load_file(state_files(c.output / STATE)[-1]) for c in (killed, whole)]
    assert ends[0].keys() == ends[1].keys()
    assert all(ends[0][key].equal(ends[1][key]) for key in ends[0])
    for ours, theirs in zip(resumed.rows, reference.rows, strict=True):
        ours.pop("tokens_per_second"), theirs.pop("tokens_per_second")
        assert ours == theirs
    assert [row["step"] for row in read_metrics(killed.output)] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def whole() -> dict[int, str | None]:
    """The digests of runs that were not killed, by their steps."""
    return {}


@pytest.mark.parametrize(
    ("again", "point", "times"),
    [
        (False, "a step's row is written", 1),
        (False, "a step's row is written", 2),  # a state is due
        (False, "a step's row is written", 4),  # the last one
        (False, "a state is half written", 2),
        (False, "a state is saved", 1),
        (False, "a state is saved", 2),
        (False, "a file of the adapter is written", 2),
        # Over the adapter of a shorter run: it has its name no more, the new one not yet.
        (True, "the adapter, or the one before it, is renamed", 1),
        (True, "the adapter, or the one before it, is renamed", 2),
    ],
    ids=str,
)
def test_a_run_killed_between_two_writes_misses_nothing_and_leaves_nothing(
    make_config: MakeConfig,
    tmp_path: Path,
    whole: dict[int, str | None],
    point: str,
    times: int,
    again: bool,
) -> None:
    settings = {"checkpoint_every": 2, "schedule": "constant"}
    steps = 4 + 2 * again
    config = make_config(steps=steps, base_name="tiny", **settings)
    if steps not in whole:
        reference = make_config(
            steps=steps, base_name="tiny", output=str(tmp_path / "whole"), **settings
        )
        whole[steps] = run_training(reference).digest
    if again:
        run_training(make_config(steps=2, base_name="tiny", **settings))
    recipe = write_config(tmp_path / "run.yaml", config)
    child = context.Process(target=train_until, args=(str(recipe), point, times))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert run_training(config, resume=True).digest == whole[steps]
    assert [row["step"] for row in read_metrics(config.output)] == list(range(1, steps + 1))
    names = {path.name for path in config.output.rglob("*")}
    assert not [name for name in names if name.startswith(".") or name.endswith(".unfinished")]


def test_an_interrupted_write_leaves_nothing(
    trained: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("training.state.save_file", full)
    folder = trained.config.output / STATE
    with pytest.raises(TrainingError, match="the state cannot be written: I/O error: No space"):
        trained.save(folder)
    assert all(path.suffix == ".safetensors" for path in folder.iterdir())


@pytest.fixture
def trained(make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast) -> Trainer:
    """A trainer of six steps with saved states at 2, 4 and 6."""
    config = make_config()
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    trainer = Trainer(config, tiny_model("llama"), examples)
    trainer.run(state_folder=config.output / STATE, on_step=lambda _: None)
    return trainer


def resume(trainer: Trainer, config: TrainConfig) -> int:
    fresh = Trainer(config, tiny_model("llama"), trainer.rows)
    return fresh.resume(trainer.config.output / STATE)


def test_only_the_newest_states_are_kept(trained: Trainer) -> None:
    names = [path.name for path in sorted((trained.config.output / STATE).iterdir())]
    assert names == ["state-0000004.safetensors", "state-0000006.safetensors"]
    assert len(names) == KEPT


def test_resuming_with_other_settings_or_data_is_refused(
    trained: Trainer, make_config: MakeConfig, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert resume(trained, make_config(checkpoint_every=1, eval_every=9)) == 6
    with pytest.raises(TrainingError, match=r"was saved with r = 2, found 3; resume with the same"):
        resume(trained, make_config(r=3))
    with pytest.raises(TrainingError, match=r"was saved with seed = 0, found 1"):
        resume(trained, make_config(seed=1))


def test_a_broken_state_is_named(trained: Trainer, make_config: MakeConfig) -> None:
    newest = state_files(trained.config.output / STATE)[-1]
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=rf"{newest.name}: found no readable training state"):
        resume(trained, make_config())
    save_file({"weight/x": load_file_one(whole, newest)}, newest)
    with pytest.raises(TrainingError, match="found no readable training state"):
        resume(trained, make_config())
    newest.unlink()
    assert resume(trained, make_config()) == 4


def load_file_one(data: bytes, path: Path):
    """Any tensor of a state file that was read into memory."""
    path.write_bytes(data)
    return next(iter(load_file(path).values()))


def test_an_unfinished_file_is_no_state(trained: Trainer, make_config: MakeConfig) -> None:
    (trained.config.output / STATE / "state-0000009.unfinished").write_bytes(b"half")
    assert resume(trained, make_config()) == 6


def test_without_a_state_a_run_starts_at_the_beginning(make_config: MakeConfig) -> None:
    result = run_training(make_config(steps=2), resume=True)
    assert [row["step"] for row in result.rows] == [1, 2]
