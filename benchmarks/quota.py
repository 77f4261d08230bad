"""A CPU quota for this process and those that it starts: what a container's CPU limit is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PERIOD = 100_000
"""Microseconds, as container runtimes set it."""


def may_set_quota(root: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether this process may make a control group of version 1 with a quota."""
    return os.access(root / "cpu", os.W_OK) and (root / "cpu/cpu.cfs_quota_us").exists()


@contextmanager
def cpu_quota(cores: float, root: Path = Path("/sys/fs/cgroup")) -> Iterator[None]:
    """This process, and what it starts, get so many cores together. Raises `OSError`."""
    group = root / "cpu" / f"remix-bench-{os.getpid()}"
    group.mkdir()
    try:
        (group / "cpu.cfs_period_us").write_text(str(_PERIOD))
        (group / "cpu.cfs_quota_us").write_text(str(round(cores * _PERIOD)))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        try:
            yield
        finally:
            (root / "cpu" / "cgroup.procs").write_text(str(os.getpid()))
    finally:
        group.rmdir()
