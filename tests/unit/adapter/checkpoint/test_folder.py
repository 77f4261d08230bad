"""`read_checkpoint`: the folder of an adapter, what it may hold and how large that may be."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint import CheckpointLimits, read_checkpoint
from remix_runtime.adapter.checkpoint import folder as folder_module
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE, TENSOR_FILE, refused


def test_a_link_to_the_folder_is_fine(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert read_checkpoint(tmp_path / "link").digest == read_checkpoint(folder).digest


def test_no_folder(tmp_path):
    refused(tmp_path / "nothing", "No such file", "adapter folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "Not a directory")
    refused(Path("a\0b"), "null byte")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
def test_missing_file(folder, name):
    (folder / name).unlink()
    refused(folder, name, "missing")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, "notes.txt"])
def test_symbolic_link_to_outside(folder, tmp_path, name):
    outside = tmp_path / "outside"
    if (folder / name).exists():
        (folder / name).rename(outside)
    else:
        outside.touch()
    (folder / name).symlink_to(outside)
    refused(folder, name, "symbolic link")


def test_symbolic_link_inside_or_broken_or_to_a_folder(folder, tmp_path):
    for target in (CONFIG_FILE, "nowhere", str(tmp_path)):
        (folder / "link").symlink_to(target)
        refused(folder, "link", "symbolic link")
        (folder / "link").unlink()


def test_symbolic_link_deep_inside(folder):
    (folder / "plots" / "old").mkdir(parents=True)
    (folder / "plots" / "loss.png").touch()
    read_checkpoint(folder)
    (folder / "plots" / "old" / "key").symlink_to("/etc/passwd")
    refused(folder, "plots/old/key", "symbolic link")


def test_link_put_there_after_the_folder_was_looked_at(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_check_entries", lambda fd, max_files: None)
    (folder / TENSOR_FILE).rename(tmp_path / "outside")
    (folder / TENSOR_FILE).symlink_to(tmp_path / "outside")
    refused(folder, TENSOR_FILE, "expected a regular file")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, "extra"])
def test_fifo_and_socket_are_refused_without_waiting(folder, name, monkeypatch):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    refused(folder, name, "special file")
    if name != "extra":
        monkeypatch.setattr(folder_module, "_check_entries", lambda fd, max_files: None)
        refused(folder, name, "special file")
        monkeypatch.undo()
    (folder / name).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # a socket's path is at most 108 bytes
        server.bind(name)
        refused(folder, name, "special file")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE])
def test_folder_in_place_of_a_file(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name, "folder")


@pytest.mark.parametrize(
    "name",
    ["adapter_model.bin", "optimizer.pt", "x.PKL", "modeling.py", "lib.so", "sub/state.ckpt"],
)
def test_files_that_can_carry_code(folder, name):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(folder, name, "can carry code")


def test_pickle_in_the_place_of_the_tensor_file(folder, tmp_path):
    marker = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    for data in (pickle.dumps(Evil()), b"PK\x03\x04" + bytes(200)):
        (folder / TENSOR_FILE).write_bytes(data)
        refused(folder, TENSOR_FILE)
    torch.save({"x": torch.ones(2)}, folder / TENSOR_FILE)
    refused(folder, TENSOR_FILE)
    assert not marker.exists()


def test_too_many_files(folder):
    limits = CheckpointLimits(files=8)
    read_checkpoint(folder, limits=limits)
    for i in range(5):
        (folder / f"{i}.txt").touch()
    refused(folder, "more than 8", limits=limits)


def test_sizes_are_limited_before_anything_is_read(folder):
    refused(folder, CONFIG_FILE, "at most 10", limits=CheckpointLimits(config_bytes=10))
    refused(folder, TENSOR_FILE, "2 to 100", limits=CheckpointLimits(header_bytes=100))
    size = read_checkpoint(folder).num_bytes
    read_checkpoint(folder, limits=CheckpointLimits(tensor_bytes=size))
    refused(folder, TENSOR_FILE, str(size), limits=CheckpointLimits(tensor_bytes=size - 1))
    with (folder / TENSOR_FILE).open("r+b") as stream:
        stream.truncate(1 << 41)  # sparse: takes no disk
    refused(folder, TENSOR_FILE, str(1 << 41))
