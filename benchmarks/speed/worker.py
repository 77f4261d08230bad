"""The bench's end of the pipe to one system's process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from benchmarks.speed.systems.protocol import Answer, Failure, Run, Workload

_ROOT = Path(__file__).resolve().parents[2]
# Appended, not prepended: another environment's own packages must win over ours.
_BOOT = "import sys; sys.path.append({!r}); from benchmarks.speed import child; child.main()"
_TIMEOUT_SECONDS = 600.0


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
    ) -> None:
        """Starts the process and waits until the system is built. Raises `WorkerError`."""
        self.name = name
        self.idle_cpu_share = 0.0
        """Largest share of one core that the idle process used between two workloads."""
        self._log = log
        thread_env = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._pipe, theirs = Pipe()
        with log.open("w") as output, theirs:
            self._process = subprocess.Popen(
                [python, "-c", _BOOT.format(str(_ROOT)), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(theirs.fileno(),),
                env={**os.environ, **thread_env, **(env or {})},
            )
        try:
            self.about: dict[str, Any] = self._ask((target, dict(options)))
        except BaseException:
            self.close()
            raise

    def run(self, workload: Workload) -> Run:
        """Runs one workload while this process waits. Raises `WorkerError`."""
        answer: Answer = self._ask(workload)
        if answer.idle_wall > 1.0:
            self.idle_cpu_share = max(self.idle_cpu_share, answer.idle_cpu / answer.idle_wall)
        return answer.run

    def close(self) -> None:
        """Ends the process. Idempotent."""
        self._pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, message: object) -> Any:
        try:
            self._pipe.send(message)
            if not self._pipe.poll(_TIMEOUT_SECONDS):
                self._process.kill()
            answer = self._pipe.recv()
        except (EOFError, OSError):
            status = self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "nothing on stderr"
            raise WorkerError(f"{self.name}: the process ended ({status}): {last}") from None
        if isinstance(answer, Failure):
            raise WorkerError(f"{self.name}: {answer.reason}")
        return answer
