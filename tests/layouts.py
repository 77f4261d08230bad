"""Adapter folders as tools lay them out: each function moves the files of a plain one into its
layout and returns the folder that a user would name."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

REVISION = "5c7f2d0e1b8a4f36a1c9d0e2b3f4a5968778695a"


def plain(adapter: Path) -> Path:
    return adapter


def cache(adapter: Path) -> Path:
    """Hugging Face's cache: files named by their hashes, links to them in a snapshot."""
    repository = adapter.with_name("models--owner--name")
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for index, path in enumerate(sorted(adapter.iterdir())):
        path.rename(repository / "blobs" / f"{index:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{index:064x}")
    (snapshot / ".gitattributes").symlink_to("../../blobs/gone")
    return snapshot


def volume(adapter: Path) -> Path:
    """A ConfigMap or projected volume of Kubernetes: `..data` is switched to a new version."""
    mount = adapter.with_name("mount")
    mount.mkdir()
    version = adapter.rename(mount / "..2026_11_28_04_39_12.1234567890")
    (mount / "..data").symlink_to(version.name)
    for path in version.iterdir():
        (mount / path.name).symlink_to(f"..data/{path.name}")
    return mount


def volume_with_folders(adapter: Path) -> Path:
    """The same with a path in its keys: the folder itself lies behind the link."""
    mount = adapter.with_name("mount")
    (mount / "..2026_11_28").mkdir(parents=True)
    adapter.rename(mount / "..2026_11_28" / "pirate")
    (mount / "..data").symlink_to("..2026_11_28")
    (mount / "pirate").symlink_to("..data/pirate")
    return mount / "pirate"


def trainer_checkpoint(adapter: Path) -> Path:
    """What transformers' trainer saves, and what systems and people leave in folders."""
    pickles = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "x.pkl")
    for name in pickles:
        (adapter / name).write_bytes(pickle.dumps({"a": 1}))
    for name in ("trainer_state.json", "tokenizer.json", ".gitattributes", ".DS_Store", "lib.so"):
        (adapter / name).write_text("{}")
    (adapter / "modeling.py").write_text("raise SystemExit\n")
    (adapter / "runs" / "Nov28").mkdir(parents=True)
    (adapter / "runs" / "Nov28" / "events.out.tfevents.1").touch()
    shutil.copytree(adapter, adapter.with_name("copy"))
    adapter.with_name("copy").rename(adapter / "checkpoint-100")
    os.mkfifo(adapter / "pipe")
    (adapter / "latest").symlink_to("checkpoint-100")
    (adapter / "lost").symlink_to("nowhere")
    (adapter / "loop").symlink_to("loop")
    (adapter / "log").symlink_to("/dev/null")
    return adapter


def links_in_a_chain(adapter: Path) -> Path:
    """An absolute link to a relative one to a folder that is itself a link."""
    folder = adapter.with_name("chain")
    folder.mkdir()
    adapter.with_name("alias").symlink_to(adapter.name, target_is_directory=True)
    for path in adapter.iterdir():
        (folder / f"{path.name}.v2").symlink_to(f"../alias/{path.name}")
        (folder / path.name).symlink_to(folder / f"{path.name}.v2")
    return folder


def hard_links(adapter: Path) -> Path:
    folder = adapter.with_name("hard")
    folder.mkdir()
    for path in adapter.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder


def linked_folder(adapter: Path) -> Path:
    (adapter.parent / "latest").symlink_to(adapter.name, target_is_directory=True)
    return adapter.parent / "latest"


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (
        plain,
        cache,
        volume,
        volume_with_folders,
        trainer_checkpoint,
        links_in_a_chain,
        hard_links,
        linked_folder,
    )
}
"""All of them hold the same adapter, and everything they need lies beside it."""


def _moved_out(path: Path) -> Path:
    return path.rename(path.parent.with_name(f"moved-{path.name}"))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("../nowhere/at/all")


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to("other")
    (path.parent / "other").symlink_to(path.name)


def link_to_a_folder(path: Path) -> None:
    path.unlink()
    path.symlink_to(".")


def link_to_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def link_to_a_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_through_a_file(path: Path) -> None:
    _moved_out(path)
    path.symlink_to(f"../moved-{path.name}/{path.name}")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BROKEN: Mapping[str, tuple[Callable[[Path], None], str]] = {
    made.__name__: (made, reason)
    for made, reason in (
        (dangling, "a link that leads nowhere"),
        (loop, "Too many levels of symbolic links"),
        (link_to_a_folder, "found a folder"),
        (link_to_a_pipe, "found a special file"),
        (link_to_a_device, "found a special file"),
        (link_through_a_file, "Not a directory"),
        (folder, "found a folder"),
        (pipe, "found a special file"),
    )
}
"""What may stand in the place of a file and is refused, and the words that say so."""
