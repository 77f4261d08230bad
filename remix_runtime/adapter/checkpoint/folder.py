"""Opening the few files of an adapter folder that are ever read.

Links are followed, as PEFT follows them: in the Hugging Face cache every file is a link to a blob,
under a Kubernetes volume it is a link through `..data`. What else lies in the folder is never
opened. Each file is opened once and judged by its descriptor: what was checked is what is read,
whatever happens to the names meanwhile. Under a root nothing outside of it is opened at all.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePath

from remix_runtime.adapter.checkpoint.beneath import OutsideError, open_beneath
from remix_runtime.adapter.checkpoint.strict_json import show
from remix_runtime.errors import CheckpointFormatError

_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of a folder: this process has no more files or memory."""

_State = tuple[int, int, int, int]
"""Device, inode, size in bytes and time of change in ns: other content shows in one of them."""


class Folder:
    """An open adapter folder. Made by `open_folder`."""

    def __init__(self, fd: int, beneath: tuple[Path, PurePath] | None) -> None:
        self._fd = fd
        self._beneath = beneath  # the root, and the way from it to this folder
        self._opened: dict[str, _State] = {}

    @contextmanager
    def open(self, name: str, *, max_bytes: int) -> Iterator[tuple[FileIO, int]]:
        """The file and its size in bytes. Raises `CheckpointFormatError` for anything but a
        regular file of at most `max_bytes` under the root, and `OSError` where this process can
        open no file at all."""
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            if self._beneath is None:
                fd = os.open(name, flags, dir_fd=self._fd)
            else:
                root, way = self._beneath
                fd = open_beneath(root, way / name, flags)
        except OutsideError:
            raise CheckpointFormatError(
                f"{name}: found a link out of {root}, expected a file under it"
            ) from None
        except OSError as error:
            if error.errno in _OURS:
                raise
            reason = self._missing(name) if error.errno == errno.ENOENT else error.strerror
            raise CheckpointFormatError(f"{name}: {reason}, expected a regular file") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a special file"
                raise CheckpointFormatError(f"{name}: found {kind}, expected a file")
            if status.st_size > max_bytes:
                raise CheckpointFormatError(
                    f"{name}: found {status.st_size} bytes, expected at most {max_bytes}"
                )
            self._opened[name] = _state(status)
            with os.fdopen(fd, "rb", buffering=0, closefd=False) as stream:
                yield stream, status.st_size
        finally:
            os.close(fd)

    def read(self, name: str, *, max_bytes: int) -> bytes:
        """The whole file. Raises as `open` does."""
        with self.open(name, max_bytes=max_bytes) as (stream, size):
            return read_exactly(stream, size, name)

    def has(self, name: str) -> bool:
        """Whether there is such a name; a link that leads nowhere is one."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def check_unchanged(self) -> None:
        """Raises `CheckpointFormatError` where a name now stands for another file or other content
        than the one that was opened: `..data` was switched to a new version, and what was read
        may be a mixture of both."""
        for name, before in self._opened.items():
            try:
                is_same = _state(os.stat(name, dir_fd=self._fd)) == before
            except OSError:
                is_same = False
            if not is_same:
                raise CheckpointFormatError(f"{name}: changed while it was read; read it again")

    def _missing(self, name: str) -> str:
        return "found a link that leads nowhere" if self.has(name) else "missing"


@contextmanager
def open_folder(folder: Path, *, root: Path | None = None) -> Iterator[Folder]:
    """Opens a folder, which may be a link; leaving it without an error means that all files that
    were opened belong together.

    Without `root` whoever names the folder vouches for what its links lead to. With one, which
    must be free of links, the folder and every file must lie under it: what does not is never
    opened. Raises `CheckpointFormatError`.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    beneath: tuple[Path, PurePath] | None = None
    try:
        if root is None:
            fd = os.open(folder, flags)
        else:
            real = PurePath(os.path.realpath(folder))
            if not real.is_relative_to(root):
                raise OutsideError
            beneath = root, real.relative_to(root)
            fd = open_beneath(*beneath, flags)
    except OutsideError:
        raise CheckpointFormatError(
            f"{show(str(folder))}: found a folder out of {root}, expected one under it"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        if isinstance(error, OSError) and error.errno in _OURS:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointFormatError(
            f"{show(str(folder))}: {reason}, expected an adapter folder"
        ) from None
    try:
        files = Folder(fd, beneath)
        try:
            yield files
        finally:  # after an error too: the change is then what caused it
            files.check_unchanged()
    finally:
        os.close(fd)


def read_exactly(stream: FileIO, size: int, name: str) -> bytes:
    """The next `size` bytes. Raises `CheckpointFormatError` where the file ends before, or the disk
    does not give them."""
    parts: list[bytes] = []
    with _reading(name):
        while size and (part := stream.read(size)):  # one read returns at most 2 GiB
            parts.append(part)
            size -= len(part)
    if size:
        raise _shorter(name)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(stream: FileIO, data: bytearray, name: str) -> None:
    """Fills `data` with the next bytes. Raises as `read_exactly` does."""
    with memoryview(data) as view, _reading(name):
        filled = 0
        while filled < len(data):
            if not (count := stream.readinto(view[filled:])):
                raise _shorter(name)
            filled += count


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _OURS:
            raise
        raise CheckpointFormatError(f"{name}: cannot be read: {error.strerror}") from error


def _shorter(name: str) -> CheckpointFormatError:
    return CheckpointFormatError(f"{name}: became shorter while it was read; write it again")


def _state(status: os.stat_result) -> _State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
