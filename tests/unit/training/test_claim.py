"""Two runs on one output folder: exactly one goes on, and what it writes is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from remix_runtime.errors import ConfigError
from tests.unit.training.conftest import MakeConfig
from training.claim import LOCK, claimed
from training.log import read_metrics
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

CHILD = """
import sys
from pathlib import Path
from remix_runtime.errors import ConfigError
from training.claim import claimed

print("ready", flush=True)
sys.stdin.readline()
try:
    with claimed(Path(sys.argv[1])):
        print("has it", flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
"""


def process(output: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(output)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert said(child) == "ready"
    return child


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def end(child: subprocess.Popen[str]) -> None:
    child.communicate()
    assert child.returncode == 0


def test_of_processes_that_start_together_one_gets_the_folder(tmp_path: Path) -> None:
    output = tmp_path / "runs" / "one"
    children = [process(output) for _ in range(4)]
    for child in children:
        go(child)
    answers = [said(child) for child in children]
    assert answers.count("has it") == 1
    winner = children[answers.index("has it")]
    for answer in answers:
        if answer != "has it":
            assert answer.startswith(f"output: {output}: found another run (")
    late = process(output)
    go(late)
    assert f"found another run (pid {winner.pid}, since 2" in said(late)
    go(winner)
    for child in (*children, late):
        end(child)
    # Nothing was written there. A loser may have made the folder, which is then not the winner's.
    assert list(output.rglob("*")) == []


def test_a_folder_that_stays_empty_goes_if_it_was_made_for_the_run(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for folder in (tmp_path, made):
        with claimed(folder):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_nobody_up(tmp_path: Path) -> None:
    child = process(tmp_path)
    go(child)
    assert said(child) == "has it"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (tmp_path / LOCK).exists()
    with claimed(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_run_leaves_another_ones_folder_alone(
    make_config: MakeConfig, how: dict[str, bool]
) -> None:
    config = make_config(steps=2)
    first = run_training(config)
    assert not (config.output / LOCK).exists()
    before = {path: path.read_bytes() for path in config.output.rglob("*") if path.is_file()}
    with claimed(config.output), pytest.raises(ConfigError, match="found another run") as caught:
        run_training(make_config(steps=4), **how)
    assert "\n" not in str(caught.value)
    assert before == {p: p.read_bytes() for p in config.output.rglob("*") if p.is_file()}
    assert read_metrics(config.output) == first.rows


def test_what_another_program_wrote_into_the_lock_is_not_repeated(tmp_path: Path) -> None:
    with claimed(tmp_path):
        (tmp_path / LOCK).write_bytes(b"pid 1\n\xff\x1b[31m" * 1000)
        with pytest.raises(ConfigError, match="its process is not known yet"), claimed(tmp_path):
            pass
