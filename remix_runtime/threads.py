"""How many threads compute: as many as there are cores for this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path


def share_cores(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets what OpenMP reads when it is loaded, so it has to come before `import torch`. What the
    user has set stands."""
    cores = available_cores()
    if cores < cores_of_process():  # of the cores themselves OpenMP knows
        environment.setdefault("OMP_NUM_THREADS", str(cores))


def available_cores(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it may run on, or its control group's CPU quota, which
    is what a container's limit is, where that is less."""
    return max(1, min([cores_of_process(), *(round(quota) for quota in _quotas(proc, root))]))


def cores_of_process() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(proc: Path, root: Path) -> Iterator[float]:
    """CPU quotas, in cores, of the process's control group and of the groups around it."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            mounts = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [root / "cpu", root / controllers]
        else:
            continue
        # In a container the path may be that of the host, and the group is the mount's root.
        group = path.strip("/")
        while True:
            for mount in mounts:
                yield from _quota(mount / group)
            if not group:
                break
            group = group.rpartition("/")[0]


def _quota(group: Path) -> Iterator[float]:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        if quota != "max" and float(quota) > 0:
            yield float(quota) / float(period)
    except (OSError, ValueError):
        return
