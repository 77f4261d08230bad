"""A container as an orchestrator runs it: namespaces of its own, the image's user without rights,
and a root that nobody can write to."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLONE_NEWNET = 0x40000000
START = r"""
root=$1 data=$2; shift 2
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
for device in null zero full random urandom; do
    touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root/dev/shm"; mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev tmp "$root/tmp"
mount --bind "$data" "$root/data"
while [ "$1" != -- ]; do
    mkdir -p "$root$2"; mount --bind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; shift 2
done
shift
mount -o remount,bind,ro "$root"
exec setpriv --no-new-privs chroot --userspec="$ID:$ID" --groups= "$root" "$@"
"""
"""The last `exec` makes the image's command the first process: what a signal does there is not what
it does elsewhere."""


@dataclass(frozen=True)
class Image:
    """What an image says of how it is run."""

    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    user: str
    folder: str
    health: tuple[str, ...]

    @classmethod
    def of(cls, inspected: Mapping[str, Any]) -> Image:
        config = inspected["OCIv1"]["config"]
        kind, *health = inspected["Docker"]["config"]["Healthcheck"]["Test"]
        assert kind == "CMD"
        return cls(
            environment=tuple(config["Env"]),
            entrypoint=tuple(config["Entrypoint"]),
            command=tuple(config["Cmd"]),
            user=config["User"],
            folder=config["WorkingDir"],
            health=tuple(health),
        )


class Container:
    """A running one. `root` is the image's files, `data` a folder for /data, `read_only` folders of
    this machine by where they are mounted, `more` what is given after the image's own command,
    `environment` beside the image's own."""

    def __init__(
        self,
        image: Image,
        root: Path,
        data: Path,
        read_only: Mapping[str, Path],
        *more: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.image = image
        self._given = tuple(f"{name}={value}" for name, value in (environment or {}).items())
        data.mkdir(exist_ok=True)
        os.chown(data, int(image.user), int(image.user))  # as a new volume has it
        self.log = data.with_suffix(".log")
        mounts = [str(part) for to, source in read_only.items() for part in (source, to)]
        isolated = (
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
        )
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(*isolated, "bash", "-euc", START, "start", str(root), str(data), *mounts),
                    *("--", *self._environment, *image.entrypoint, *image.command, *more),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "ID": image.user},
            )

    @property
    def _environment(self) -> tuple[str, ...]:
        """In front of a command inside."""
        fixed = ("/usr/bin/env", "-i", "-C", self.image.folder)
        return (*fixed, *self.image.environment, *self._given)

    @property
    def pid(self) -> int:
        """Of the first process inside, as this machine counts."""
        outer = self._process.pid
        for _ in range(500):
            children = Path(f"/proc/{outer}/task/{outer}/children").read_text().split()
            if children:
                return int(children[0])
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    def status(self, field: str) -> str:
        """Of /proc/PID/status."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith(f"{field}:"))
        return line.partition(":")[2].strip()

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """As the image's user, where the first process is, as an orchestrator does for a probe."""
        inside = ("nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root")
        user = (f"--setuid={self.image.user}", f"--setgid={self.image.user}")
        return subprocess.run(
            [*inside, *user, *self._environment, *command],
            capture_output=True,
            text=True,
            timeout=60,
        )

    def is_healthy(self) -> bool:
        """By the image's own check."""
        return self.execute(*self.image.health).returncode == 0

    def wait_healthy(self, seconds: float = 180) -> None:
        end = time.monotonic() + seconds
        while not self.is_healthy():
            assert self._process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.5)

    def mounts(self) -> dict[str, bool]:
        """Where something is mounted inside, and whether it may be written to."""
        lines = Path(f"/proc/{self.pid}/mounts").read_text().splitlines()
        words = [line.split() for line in lines]
        return {place: options.split(",")[0] == "rw" for _, place, _, options, *_ in words}

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread's new sockets are in the container's network meanwhile."""
        with open("/proc/thread-self/ns/net") as own, open(f"/proc/{self.pid}/ns/net") as inside:
            _set_network(inside.fileno())
            try:
                yield
            finally:
                _set_network(own.fileno())

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, seconds: float) -> int:
        """The exit status of the image's command."""
        return self._process.wait(seconds)

    def stop(self) -> None:
        """Ends it by force, if it still runs, and all that is in it."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


def _set_network(file: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns in {threading.current_thread().name}")
