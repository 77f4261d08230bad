"""Runs the Python that a model wrote, and tests of it, in a process of their own.

The process is bounded in time, memory and size of files, sees an empty folder and no environment.
It is not isolated: it has this user's rights and network. Whoever asks for it runs it where nothing
can be lost.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

SECONDS = 10
_REACHED_THE_END = 77
"""The exit status of a program that has not ended before its tests: 0 is easily said."""
_RUN = f"""
import os, resource, runpy
for name, limit in (("CPU", {SECONDS}), ("AS", 1 << 30), ("FSIZE", 1 << 20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
runpy.run_path("answer.py", run_name="answer")
os._exit({_REACHED_THE_END})
"""
_FENCED = re.compile(r"```(?:python|py)?[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)


def passes(answer: str, tests: str, *, seconds: float = SECONDS) -> bool:
    """Whether the tests run to their end behind the answer's code: that between fences, or all of
    it."""
    found = _FENCED.findall(answer)
    code = "\n".join(found) if found else answer
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answer.py").write_text(f"{code}\n{tests}\n", "utf-8", "replace")
        process = subprocess.Popen(  # noqa: S603 - what a model wrote: see above
            [sys.executable, "-I", "-S", "-c", _RUN],
            cwd=folder,
            env={},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds) == _REACHED_THE_END
        except subprocess.TimeoutExpired:
            return False
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
