"""What an adapter folder does to the process that examines it is an error of that folder, and the
next examination is as if nothing had been."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import describe, read_adapter
from remix_runtime.adapter.examination import (
    ExaminationError,
    ExaminationLimits,
    examine,
)
from remix_runtime.errors import CheckpointError, CheckpointFormatError
from tests.unit.adapter.checkpoint.adapters import (
    CONFIG_FILE,
    TENSOR_FILE,
    edit_config,
    join,
)
from tests.unit.store.conftest import write_adapter

MANY = 4096


class Trouble:
    """In the place of limits: what it does happens where the adapter is read."""

    memory_bytes = 256 << 20
    patience = 600.0

    def __init__(self, action: Callable[[], Any], memory_bytes: int = 256 << 20) -> None:
        self.action = action
        self.memory_bytes = memory_bytes

    def cpu_seconds(self, folder: Path) -> int:
        return 1

    @property
    def tensor_bytes(self) -> int:
        self.action()
        return 1 << 30


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end() -> None:
    os._exit(3)


def spin() -> None:
    while True:
        pass


def take_memory() -> None:
    bytearray(1 << 30)


def fail() -> None:
    raise ZeroDivisionError


def connect() -> None:
    socket.create_connection(("127.0.0.1", 1))


def write() -> None:
    os.write(os.memfd_create("anything"), b"x")


def open_many() -> None:
    for _ in range(100):
        os.open("/dev/null", os.O_RDONLY)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_what_is_sound_is_described_as_it_is_here(adapter: Path) -> None:
    assert examine(adapter) == describe(read_adapter(adapter)[0])


def test_what_is_refused_is_refused_in_the_same_words(adapter: Path) -> None:
    edit_config(adapter, {"top_k": 9})
    with pytest.raises(CheckpointError) as here:
        read_adapter(adapter)
    with pytest.raises(CheckpointFormatError) as there:
        examine(adapter)
    assert str(there.value) == str(here.value)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (crash, "ended with signal 11, expected an answer"),
        (be_killed, "ended with signal 9, expected an answer"),
        (end, "ended with exit code 3, expected an answer"),
        (spin, "found no end of its examination, expected one within 1 s"),
        (take_memory, f"found no room in {256 << 20} bytes of memory"),
        (fail, "found ZeroDivisionError in its examination"),
    ],
)
def test_what_harms_the_process_is_refused(
    adapter: Path, action: Callable[[], None], reason: str
) -> None:
    limits: Any = Trouble(action)
    with pytest.raises(CheckpointFormatError, match=reason):
        examine(adapter, limits)
    assert examine(adapter).num_layers == 4


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (connect, "nothing like socket"),
        (write, "File too large"),
        (open_many, "Too many open files"),
    ],
)
def test_an_examination_reads_and_nothing_else(
    adapter: Path, action: Callable[[], None], reason: str
) -> None:
    limits: Any = Trouble(action)
    with pytest.raises(ExaminationError, match=reason):
        examine(adapter, limits)


def test_one_that_is_late_is_ended(adapter: Path) -> None:
    with pytest.raises(CheckpointFormatError, match="found no end of its examination"):
        examine(adapter, ExaminationLimits(patience=0.0))


def test_tensors_over_the_limit_are_refused_by_their_header(adapter: Path) -> None:
    with pytest.raises(CheckpointFormatError, match=r"bytes as float32, expected at most 100"):
        examine(adapter, ExaminationLimits(tensor_bytes=100))


def test_a_folder_that_cannot_be_read_says_nothing_of_an_adapter(tmp_path: Path) -> None:
    with pytest.raises(ExaminationError):
        examine(tmp_path / "nowhere")


def test_megabytes_of_names_take_no_more_than_an_adapter(adapter: Path) -> None:
    """Each name of a tensor was compared with each target: a minute, for 3.3 MB."""
    targets = [f"t{n:05}." + "a." * 100 + "b" for n in range(MANY)]
    edit_config(adapter, {"target_modules": targets})
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    names = [f"base_model.model.{n}.{targets[-1]}.remix_A.weight" for n in range(MANY * 3)]
    header = {name: {**entry, "data_offsets": [4 * i, 4 * i + 4]} for i, name in enumerate(names)}
    data = join(header, bytes(4 * len(names)))
    assert len(data) > 3_300_000
    assert (adapter / CONFIG_FILE).stat().st_size < 1 << 20
    (adapter / TENSOR_FILE).write_bytes(data)
    with pytest.raises(CheckpointFormatError, match="found no tensor of target module"):
        examine(adapter)
