"""Opening a file beneath a folder: no name on the way leads out, whatever is renamed meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path, PurePath

_MAX_LINKS = 40
"""As many as the kernel follows."""
_MAX_DEPTH = 256
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class OutsideError(OSError):
    """A link, or `..`, leads out of the root."""


def open_beneath(root: Path, path: PurePath, flags: int) -> int:
    """Opens `path`, relative to `root`, as `os.open` does; what is outside is never opened.

    Every step is taken from the folder that the last one opened, and links are followed here, not
    by the kernel. `root` must be free of links. Raises `OSError`.
    """
    folders = [os.open(root, _STEP)]
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        names, links = [*reversed(path.parts)], 0
        while names:
            name = names.pop()
            if name == "..":
                _leave(folders, 1)
                continue
            try:
                if not names:
                    return os.open(name, flags, dir_fd=folders[-1])
                if len(folders) > _MAX_DEPTH:
                    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
                folders.append(os.open(name, _STEP, dir_fd=folders[-1]))
            except OSError as error:
                target = _target(name, folders[-1])
                if target is None:
                    raise
                links += 1
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
                if target.is_absolute():
                    target = _relative(target, root)
                    _leave(folders, len(folders) - 1)
                names += reversed(target.parts)
        return os.open(".", flags, dir_fd=folders[-1])
    finally:
        for fd in folders:
            os.close(fd)


def _leave(folders: list[int], steps: int) -> None:
    if steps >= len(folders):
        raise OutsideError(errno.EXDEV, "leads out of the root")
    for _ in range(steps):
        os.close(folders.pop())


def _target(name: str, folder: int) -> PurePath | None:
    """What a link leads to; None for what is no link."""
    try:
        return PurePath(os.readlink(name, dir_fd=folder))
    except OSError:
        return None


def _relative(target: PurePath, root: Path) -> PurePath:
    """The way from the root to an absolute target. Only a way to try: names may have changed."""
    found = PurePath(os.path.realpath(target))
    if not found.is_relative_to(root):
        raise OutsideError(errno.EXDEV, "leads out of the root")
    return found.relative_to(root)
