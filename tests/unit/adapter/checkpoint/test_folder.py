"""`read_checkpoint`: the folder of an adapter, what it may hold and how large that may be."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint import (
    CheckpointLimits,
    read_adapter,
    read_checkpoint,
    read_parity,
    write_checkpoint,
)
from remix_runtime.adapter.checkpoint import folder as folder_module
from remix_runtime.adapter.checkpoint.folder import open_folder
from remix_runtime.errors import CheckpointFormatError
from tests.layouts import BROKEN, LAYOUTS
from tests.unit.adapter.checkpoint.adapters import (
    CONFIG,
    CONFIG_FILE,
    PARITY_FILE,
    TENSOR_FILE,
    make_layers,
    make_parity,
    refused,
)


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_as_tools_make_them_hold_the_same_adapter(folder, tmp_path, layout):
    before = read_adapter(folder)
    named = LAYOUTS[layout](folder)
    for root in (None, tmp_path.resolve()):
        with open_folder(named, root=root) as files:
            for name in (CONFIG_FILE, TENSOR_FILE, PARITY_FILE):
                assert files.read(name, max_bytes=1 << 20)
    checkpoint, parity = read_adapter(named)
    assert checkpoint.digest == before[0].digest
    assert (parity is None) == (before[1] is None)
    assert read_parity(named) is not None


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, PARITY_FILE])
@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_regular_file_is_refused_without_waiting(folder, name, kind):
    breaks, reason = BROKEN[kind]
    breaks(folder / name)
    with pytest.raises(CheckpointFormatError, match=f"{name}: .*{reason}"):
        read_adapter(folder)


def test_a_socket_in_place_of_a_file(folder, monkeypatch):
    (folder / TENSOR_FILE).unlink()
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(folder)  # a socket's path is at most 108 bytes
        server.bind(TENSOR_FILE)
        refused(folder, TENSOR_FILE, "expected a regular file")


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, PARITY_FILE])
@pytest.mark.parametrize("layout", ["cache", "volume", "links_in_a_chain"])
def test_links_out_of_the_root_are_refused(folder, layout, name):
    named = LAYOUTS[layout](folder)
    # What is beside the folder under the root by its letters is not under it.
    for root in (named, named.with_name(named.name[:3])):
        outside = (named / name).resolve()
        inside = root.resolve()
        if outside.is_relative_to(inside):  # a volume holds what its links lead to
            continue
        with (
            pytest.raises(CheckpointFormatError, match=f"{name}: found a link out of"),
            open_folder(named, root=inside) as files,
        ):
            files.read(name, max_bytes=1 << 20)


def test_a_link_that_is_switched_after_the_look_is_judged_by_what_was_opened(
    folder, tmp_path, monkeypatch
):
    """Between the opening and the look at the path the name leads back under the root."""
    outside = (folder / CONFIG_FILE).rename(tmp_path / "outside")
    (folder / CONFIG_FILE).symlink_to(outside)
    open_file = os.open

    def open_and_switch(path, *args, **options):
        fd = open_file(path, *args, **options)
        if path == CONFIG_FILE:
            (folder / CONFIG_FILE).unlink()
            (folder / CONFIG_FILE).write_text("{}")
        return fd

    monkeypatch.setattr(folder_module.os, "open", open_and_switch)
    with (
        pytest.raises(CheckpointFormatError, match="link out of"),
        open_folder(folder, root=folder.resolve()) as files,
    ):
        pytest.fail(str(files.read(CONFIG_FILE, max_bytes=1 << 20)))


@pytest.mark.parametrize("name", [CONFIG_FILE, TENSOR_FILE, PARITY_FILE])
def test_a_volume_that_is_switched_while_it_is_read_gives_no_mixture(folder, name, monkeypatch):
    """`..data` is renamed over, as Kubernetes does it, right after one of the files was read."""
    mount = LAYOUTS["volume"](folder)
    new = mount / "..2026_11_29"
    digest = write_checkpoint(new, CONFIG, make_layers(seed=9), readme="", parity=make_parity())
    old = os.readlink(mount / "..data")

    def switch():
        (mount / "..tmp").symlink_to(new.name)
        (mount / "..tmp").rename(mount / "..data")
        shutil.rmtree(mount / old)

    opened = folder_module.Folder.open

    @contextmanager
    def open_and_switch(self, file, *, max_bytes):
        with opened(self, file, max_bytes=max_bytes) as stream:
            yield stream
        if file == name and os.readlink(mount / "..data") == old:
            switch()

    monkeypatch.setattr(folder_module.Folder, "open", open_and_switch)
    with pytest.raises(CheckpointFormatError, match="changed while it was read"):
        read_adapter(mount)
    checkpoint, parity = read_adapter(mount)
    assert checkpoint.digest == digest
    assert parity is not None


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


def test_sizes_are_limited_before_anything_is_read(folder):
    refused(folder, CONFIG_FILE, "at most 10", limits=CheckpointLimits(config_bytes=10))
    refused(folder, TENSOR_FILE, "2 to 100", limits=CheckpointLimits(header_bytes=100))
    size = read_checkpoint(folder).num_bytes
    read_checkpoint(folder, limits=CheckpointLimits(tensor_bytes=size))
    refused(folder, TENSOR_FILE, str(size), limits=CheckpointLimits(tensor_bytes=size - 1))
    with (folder / TENSOR_FILE).open("r+b") as stream:
        stream.truncate(1 << 41)  # sparse: takes no disk
    refused(folder, TENSOR_FILE, str(1 << 41))
