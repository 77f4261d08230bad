"""A client that is a command: run it, and judge by its exit code and the file that it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from calls import CALL_SECONDS


def run_command(name: str, *arguments: str, **environment: str) -> str:
    """Runs a command of the client's own environment and returns what it printed."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name(name)), *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CALL_SECONDS,
    )
    assert done.returncode == 0, (done.stderr.strip() or done.stdout)[-300:]
    return done.stdout
