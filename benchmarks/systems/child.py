"""The process of one measured system: builds it, then answers "run this workload" over pipes.

One JSON object per line on stdin and stdout. Whatever a library prints goes to stderr, so that
it cannot mix with the answers. While waiting for a line the process sleeps in a read; it also
reports the CPU time it used between two workloads, which shows whether idle threads spin.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any, TextIO

from benchmarks.systems.protocol import System, Workload


def main() -> None:
    """First line in: {"target": "module:Class", "options": {...}}; then workloads until EOF."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        order = json.loads(sys.stdin.readline())
        module, _, name = order["target"].partition(":")
        system: System = getattr(importlib.import_module(module), name)(**order["options"])
    except Exception as error:
        traceback.print_exc()
        _answer(answers, {"error": _one_line(error)})
        return
    _answer(answers, {"about": system.about})
    _serve(system, answers)


def _serve(system: System, answers: TextIO) -> None:
    cpu, wall = time.process_time(), time.monotonic()
    for line in sys.stdin:
        idle_cpu, idle_wall = time.process_time() - cpu, time.monotonic() - wall
        try:
            run = system.run(Workload(**json.loads(line)))
            answer: dict[str, Any] = asdict(run)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": _one_line(error)}
        _answer(answers, {"idle_cpu": idle_cpu, "idle_wall": idle_wall, **answer})
        cpu, wall = time.process_time(), time.monotonic()


def _answer(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
