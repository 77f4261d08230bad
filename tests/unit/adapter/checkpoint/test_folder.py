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
            pytest.raises(CheckpointFormatError, match=r"found a (link|folder) out of"),
            open_folder(named, root=inside) as files,
        ):
            files.read(name, max_bytes=1 << 20)


@pytest.fixture
def opened(monkeypatch):
    """The real paths of all that is opened from now on."""
    paths, open_file = [], os.open

    def open_and_note(path, *args, **options):
        fd = open_file(path, *args, **options)
        paths.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        return fd

    monkeypatch.setattr(os, "open", open_and_note)
    return paths


@pytest.mark.parametrize("link", ["relative", "absolute", "chain", "folder", "up and down"])
def test_what_is_outside_of_the_root_is_never_opened(folder, tmp_path, opened, link):
    """Opening can be enough to do harm: of a device, or of a file on a disk that hangs."""
    root = tmp_path.resolve() / "root"
    root.mkdir()
    outside = tmp_path.resolve() / "outside"
    shutil.copytree(folder, outside)
    named = root / "adapter"
    shutil.move(folder, named)
    (named / CONFIG_FILE).unlink()
    target = {
        "relative": "../../outside",
        "absolute": str(outside),
        "chain": "../chain",
        "folder": "../links",
        "up and down": "../../root/../outside",
    }[link]
    (root / "chain").symlink_to(outside, target_is_directory=True)
    (root / "links").symlink_to("../outside", target_is_directory=True)
    (named / CONFIG_FILE).symlink_to(f"{target}/{CONFIG_FILE}")
    with (
        pytest.raises(CheckpointFormatError, match=f"{CONFIG_FILE}: found a link out of"),
        open_folder(named, root=root) as files,
    ):
        pytest.fail(str(files.read(CONFIG_FILE, max_bytes=1 << 20)))
    assert len(opened) > 1
    assert all(path.is_relative_to(root) for path in opened)


@pytest.mark.parametrize("swapped", ["the folder", "a folder above it", "a file"])
def test_names_that_are_swapped_after_the_look_lead_nowhere(
    folder, tmp_path, monkeypatch, opened, swapped
):
    """Whoever may write under the root puts a link out of it in the place of what was looked at."""
    root = tmp_path.resolve() / "root"
    shutil.copytree(folder, root / "team" / "adapter")
    shutil.copytree(folder, tmp_path / "outside" / "adapter")
    named = root / "team" / "adapter"
    real_path = os.path.realpath

    def look_and_swap(path):
        found = real_path(path)
        monkeypatch.setattr(os.path, "realpath", real_path)
        place, target = {
            "the folder": (named, tmp_path / "outside" / "adapter"),
            "a folder above it": (named.parent, tmp_path / "outside"),
            "a file": (named / CONFIG_FILE, tmp_path / "outside" / "adapter" / CONFIG_FILE),
        }[swapped]
        place.rename(tmp_path / "away")
        place.symlink_to(target)
        return found

    monkeypatch.setattr(os.path, "realpath", look_and_swap)
    with (
        pytest.raises(CheckpointFormatError, match=r"found a (link|folder) out of"),
        open_folder(named, root=root) as files,
    ):
        pytest.fail(str(files.read(CONFIG_FILE, max_bytes=1 << 20)))
    assert opened
    assert all(path.is_relative_to(root) for path in opened)


def test_links_under_the_root_are_followed_as_the_kernel_does(folder, tmp_path):
    root = tmp_path.resolve()
    (root / "a" / "b").mkdir(parents=True)
    (root / "data").write_text("{}")
    (root / "a" / "up").symlink_to("..")
    (root / "a" / "b" / "absolute").symlink_to(root / "a" / "up")
    (root / "a" / "loop").symlink_to("loop")
    for way in ("../../data", "absolute/data", "../up/a/b/../../data", "./..//.././data"):
        (root / "a" / "b" / CONFIG_FILE).unlink(missing_ok=True)
        (root / "a" / "b" / CONFIG_FILE).symlink_to(way)
        with open_folder(root / "a" / "b", root=root) as files:
            assert files.read(CONFIG_FILE, max_bytes=10) == b"{}"
    for way, reason in (
        ("../loop/data", "Too many levels"),
        ("../../data/x", "Not a directory"),
        ("../../gone", "leads nowhere"),
        ("..", "found a folder"),
        ("../../../..", "link out of"),
    ):
        (root / "a" / "b" / CONFIG_FILE).unlink()
        (root / "a" / "b" / CONFIG_FILE).symlink_to(way)
        with (
            pytest.raises(CheckpointFormatError, match=f"{CONFIG_FILE}: .*{reason}"),
            open_folder(root / "a" / "b", root=root) as files,
        ):
            files.read(CONFIG_FILE, max_bytes=10)


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
