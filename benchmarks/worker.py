"""The bench's end of the pipe to one system's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.systems.protocol import Run, Workload

_ROOT = Path(__file__).resolve().parent.parent
# Appended, not prepended: another environment's own packages must win over ours.
_BOOT = "import sys; sys.path.append({root!r}); from benchmarks.systems.child import main; main()"


class WorkerError(Exception):
    """A system could not start, failed or took too long; the bench goes on without it."""


class Worker:
    """One running system. `about` is what it says of itself."""

    def __init__(
        self,
        name: str,
        target: str,
        options: Mapping[str, Any],
        *,
        log: Path,
        threads: int,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        start_seconds: float = 600.0,
    ) -> None:
        """Starts the process and waits until the system is built. Raises `WorkerError`."""
        self.name = name
        self.idle_cpu_share = 0.0
        """Largest share of one core that the idle process used between two workloads."""
        self._log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [python, "-c", _BOOT.format(root=str(_ROOT))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **_thread_env(threads), **(env or {})},
            )
        try:
            answer = self._ask({"target": target, "options": dict(options)}, start_seconds)
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = answer["about"]

    def run(self, workload: Workload, *, timeout_seconds: float = 600.0) -> Run:
        """Runs one workload while this process waits. Raises `WorkerError`."""
        answer = self._ask(asdict(workload), timeout_seconds)
        if answer["idle_wall"] > 1.0:
            share = answer["idle_cpu"] / answer["idle_wall"]
            self.idle_cpu_share = max(self.idle_cpu_share, share)
        return Run(arrivals=answer["arrivals"], tokens=answer["tokens"], texts=answer.get("texts"))

    def close(self) -> None:
        """Ends the process. Idempotent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # Closing flushes; a process that is gone does not read what was written last.
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, message: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(timeout_seconds, self._process.kill)
        watchdog.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if not line:
            self._process.wait()
            raise WorkerError(
                f"{self.name}: the process ended ({self._process.returncode}): {self._last_words()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "nothing on stderr"


def _thread_env(threads: int) -> dict[str, str]:
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
