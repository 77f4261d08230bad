"""An adapter folder on its way to a replica: the bytes of its files, in Ray's object store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE
from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from remix_runtime.adapter.checkpoint.folder import open_folder
from remix_runtime.adapter.checkpoint.writer import README_FILE

CHUNK_BYTES = 32 << 20
"""Bytes of one object in the store."""

_FILES = {name: most for name, most in MAX_BYTES.items() if name != README_FILE}
"""All that an engine reads, and how large each may be."""
_PREFIX = "remix-replica-"

Bundle: TypeAlias = Mapping[str, list[Any]]
"""References to the chunks of each file, by its name."""


def pack(folder: Path, put: Callable[[bytes], Any]) -> Bundle:
    """Puts the files of an adapter into the store, one state of the folder. What they hold is
    checked where they arrive. Raises `CheckpointFormatError`."""
    bundle: dict[str, list[Any]] = {}
    with open_folder(folder) as files:
        for name, max_bytes in _FILES.items():
            if name != CONFIG_FILE and not files.has(name):
                continue
            with files.open(name, max_bytes=max_bytes) as (stream, _):
                bundle[name] = []
                while chunk := stream.read(CHUNK_BYTES):
                    bundle[name].append(put(chunk))
    return bundle


def unpack(bundle: Bundle, get: Callable[[Any], bytes], folder: Path) -> None:
    """Writes the files into a folder of its own."""
    folder.mkdir()
    for name in _FILES.keys() & bundle.keys():
        with (folder / name).open("wb") as stream:
            for chunk in bundle[name]:
                stream.write(get(chunk))


def make_root() -> Path:
    """A folder for this process's copies. What killed processes of this machine left is removed."""
    root = Path(tempfile.gettempdir())
    for left in root.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not _runs(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=root))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
