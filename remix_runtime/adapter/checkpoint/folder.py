"""Opening an adapter folder that a stranger may have made.

Everything goes through one directory handle, and each file is opened once: what was checked is
what is read, whatever happens to the names meanwhile.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.errors import CheckpointFormatError

# Files that can run code when they are loaded, or that are code.
# fmt: off
FORBIDDEN_SUFFIXES = frozenset({
    ".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pt2", ".pth",
    ".dll", ".dylib", ".exe", ".js", ".py", ".pyc", ".pyd", ".pyo", ".pyw", ".pyz", ".sh", ".so",
    ".whl",
})
# fmt: on


class Folder:
    """An open adapter folder whose every entry was looked at. Made by `open_folder`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextmanager
    def open(self, name: str, *, max_bytes: int) -> Iterator[tuple[BinaryIO, int]]:
        """The file and its size in bytes. Raises `CheckpointFormatError` for anything but a
        regular file of at most `max_bytes`."""
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=self._fd)
        except OSError as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else error.strerror
            raise CheckpointFormatError(f"{name}: {reason}, expected a regular file") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointFormatError(f"{name}: found {_kind(status)}, expected a file")
            if status.st_size > max_bytes:
                raise CheckpointFormatError(
                    f"{name}: found {status.st_size} bytes, expected at most {max_bytes}"
                )
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as stream:
                yield stream, status.st_size
        finally:
            os.close(fd)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The whole file. Raises as `open` does."""
        with self.open(name, max_bytes=max_bytes) as (stream, size):
            return read_exactly(stream, size, name)

    def has(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True


@contextmanager
def open_folder(folder: Path, *, max_files: int) -> Iterator[Folder]:
    """Opens a folder and looks at every entry in it, at any depth.

    `folder` itself may be a link; below it there may be only folders and regular files, none of
    them a pickle or code. Raises `CheckpointFormatError`.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointFormatError(
            f"{show(str(folder))}: {reason}, expected an adapter folder"
        ) from None
    try:
        _check_entries(fd, max_files)
        yield Folder(fd)
    finally:
        os.close(fd)


def read_exactly(stream: BinaryIO, size: int, name: str) -> bytes:
    """The next `size` bytes. Raises `CheckpointFormatError` where the file ends before."""
    parts: list[bytes] = []
    while size and (part := stream.read(size)):  # one read returns at most 2 GiB
        parts.append(part)
        size -= len(part)
    if size:
        raise CheckpointFormatError(f"{name}: became shorter while it was read; write it again")
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_entries(fd: int, max_files: int) -> None:
    count = 0

    def stop(error: OSError) -> None:
        raise CheckpointFormatError(f"{show(error.filename)}: {error.strerror}") from None

    for parent, folders, files, parent_fd in os.fwalk(".", dir_fd=fd, onerror=stop):
        for name in (*folders, *files):
            path = os.path.normpath(os.path.join(parent, name))
            count += 1
            if count > max_files:
                raise CheckpointFormatError(
                    f"{show(path)}: found more than {max_files} entries in the folder, "
                    f"expected at most {max_files}"
                )
            try:
                status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
            except OSError as error:
                raise CheckpointFormatError(f"{show(path)}: {error.strerror}") from None
            if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                raise CheckpointFormatError(
                    f"{show(path)}: found {_kind(status)}, expected only files and folders"
                )
            suffix = os.path.splitext(name)[1].lower()
            if stat.S_ISREG(status.st_mode) and suffix in FORBIDDEN_SUFFIXES:
                raise CheckpointFormatError(
                    f"{show(path)}: found a file that can carry code, expected only safetensors "
                    "and text; remove it from the folder"
                )


def _kind(status: os.stat_result) -> str:
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    return "a folder" if stat.S_ISDIR(mode) else "a special file"
