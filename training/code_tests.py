"""Runs the Python that a model wrote, and tests of it, in a process of their own.

The process has limits of time, memory and size of files, begins in an empty folder without an
environment, and ends with this one. It is not isolated: it has this user's rights and network, and
what it starts in a session of its own may outlive it. Whoever asks for it runs it where nothing can
be lost.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path

SECONDS = 10
_REACHED_THE_END = 77
"""The exit status of a program that has not ended before its tests: 0 is easily said."""
_RUN = f"""
import ctypes, os, resource, runpy, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # killed when the process that waits for it ends
for name, limit in (("CPU", {SECONDS}), ("AS", 1 << 30), ("FSIZE", 1 << 20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
runpy.run_path("answer.py", run_name="answer")
os._exit({_REACHED_THE_END})
"""
_FENCED = re.compile(
    r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE
)


def code_of(answer: str) -> str:
    """The first block between fences that is said to be Python, or else that says nothing, or else
    all of the answer."""
    blocks = [(name.lower(), textwrap.dedent(code)) for name, code in _FENCED.findall(answer)]
    for wanted in (("python", "py", "python3"), ("",)):
        for name, code in blocks:
            if name in wanted:
                return code
    return answer


def passes(answer: str, tests: str, *, seconds: float = SECONDS) -> bool:
    """Whether the tests run to their end behind the answer's code."""
    folder = tempfile.mkdtemp()
    try:
        program = f"{code_of(answer)}\n{tests}\n"
        (Path(folder) / "answer.py").write_text(program, "utf-8", "replace")
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
    finally:
        # Folders may be deeper than Python's own removal goes, or not be folders any more.
        subprocess.run(["rm", "-rf", folder], check=False, stderr=subprocess.DEVNULL)  # noqa: S603, S607


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that it has started in its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
