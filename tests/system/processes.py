"""Processes that a test starts and ends: `remix serve`, Prometheus."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Process:
    popen: subprocess.Popen[bytes]
    log: Path
    """What it writes to stderr."""
    url: str = ""
    """Where it serves; of `remix serve` with tenants the admin API."""

    def stop(self) -> int:
        """By SIGTERM; its exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(60)


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    with log.open("wb") as written:
        popen = subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.PIPE,
            stderr=written,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
    try:
        yield Process(popen, log)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.communicate()


@contextmanager
def serving(
    *options: str | Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[Process]:
    """`remix serve` on a free port, when it serves."""
    main = "from remix_runtime.cli import main; main()"
    command = [sys.executable, "-c", main, "serve", "--port", "0", *options]
    with running(command, log, environment) as process:
        assert process.popen.stdout is not None
        first = process.popen.stdout.readline().decode()
        assert first.startswith("Serving "), log.read_text()
        process.url = first.split()[-1]
        yield process


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Process]:
    """A Prometheus that is ready."""
    port = free_port()
    command = [
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with running(command, folder / "prometheus.log") as process:
        process.url = f"http://127.0.0.1:{port}"

        def is_ready() -> bool:
            assert process.popen.poll() is None, process.log.read_text()
            try:
                return httpx.get(f"{process.url}/-/ready").status_code == 200
            except httpx.TransportError:
                return False

        eventually(is_ready)
        yield process


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Waits for what another process does; fails with `TimeoutError`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.2)
