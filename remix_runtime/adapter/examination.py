"""Examines a stranger's adapter folder in a process of its own, with limits on memory and time:
whatever lies in the folder, that process alone runs out of them or crashes.

Processes are forked from one that has imported PyTorch (`multiprocessing`'s fork server), which
starts with the first examination. What comes back is JSON.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import resource
import signal
import sys
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from remix_runtime.adapter.checkpoint import DEFAULT_LIMITS, Description, describe, read_adapter
from remix_runtime.errors import CheckpointError, CheckpointFormatError

_context = multiprocessing.get_context("forkserver")
# The command line's module too: each process imports what the main one was started from.
_context.set_forkserver_preload(["remix_runtime.cli", __name__])

FORKSERVER_BYTES = 256 << 20
"""What the process takes that others are forked from; measured, and rounded up."""
_BYTES_PER_SECOND = 32 << 20
_SLACK_BYTES = 256 << 20
"""What an examination takes beyond the tensors: the parity file, a header as Python's objects."""
_MOST_ANSWER_BYTES = 4 << 20
_STOP_SECONDS = 5.0
"""Seconds that a process has to end after its answer."""
_OPEN_FILES = 64
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system")
"""Beginnings of the names of audit events: an examination asks no network and starts nothing."""


class ExaminationError(Exception):
    """No answer for a reason that is none of the adapter's: a disk that fails, no new process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExaminationLimits:
    """What one examination may take."""

    tensor_bytes: int = DEFAULT_LIMITS.tensor_bytes
    """The largest adapter, its tensors as float32."""
    seconds: float = 10.0
    """Of CPU, beyond those that reading takes."""
    patience: float = 6.0
    """By the clock it may take this many times as long, if the machine is busy."""

    @property
    def memory_bytes(self) -> int:
        """The tensors, one of them in the type of the file, and the rest."""
        return self.tensor_bytes + self.tensor_bytes // 2 + _SLACK_BYTES

    def cpu_seconds(self, folder: Path) -> int:
        """Seconds of CPU for the files in `folder`. That it is none is found out there."""
        num_bytes = 0
        with suppress(NotADirectoryError), os.scandir(folder) as entries:
            num_bytes = sum(entry.stat().st_size for entry in entries)
        return math.ceil(self.seconds + num_bytes / _BYTES_PER_SECOND)


def examine(folder: Path, limits: ExaminationLimits | None = None) -> Description:
    """Reads and validates the adapter in `folder`, as `read_adapter` does, and says what it is.

    Blocks. Raises `CheckpointError`, also for a folder whose examination takes more than `limits`
    or ends without an answer, and `ExaminationError`.
    """
    limits = limits or ExaminationLimits()
    try:
        seconds = limits.cpu_seconds(folder)
        here, there = _context.Pipe(duplex=False)
        with closing(here):
            process = _context.Process(
                target=_answer, args=(str(folder), limits, seconds, there), daemon=True
            )
            with closing(there):
                process.start()
            found = _found(process, here, limits, seconds)
    except (OSError, EOFError) as error:  # EOFError: the fork server has ended
        raise ExaminationError(f"the adapter could not be examined: {error!r}") from error
    if "description" in found:
        description = found["description"]
        targets = tuple(description.pop("target_modules"))
        return Description(**description, target_modules=targets)
    if found["kind"] == ExaminationError.__name__:
        raise ExaminationError(found["reason"])
    raise CheckpointFormatError(found["reason"])


def _found(
    process: BaseProcess, answers: Connection, limits: ExaminationLimits, seconds: int
) -> dict[str, Any]:
    """The answer of a process, or what is said in the place of one. The process has ended then."""
    answer, is_late = b"", False
    try:
        if answers.poll(limits.patience * seconds):
            answer = answers.recv_bytes(_MOST_ANSWER_BYTES)
            process.join(_STOP_SECONDS)
        else:
            is_late = True
    except (EOFError, OSError):
        process.join(_STOP_SECONDS)
    finally:
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
    if answer:
        found: dict[str, Any] = json.loads(answer)
        return found
    if is_late or code == -signal.SIGXCPU:
        return _refusal(f"found no end of its examination, expected one within {seconds} s")
    end = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return _refusal(f"found an examination that ended with {end}, expected an answer")


def _refusal(reason: str, kind: type[Exception] = CheckpointFormatError) -> dict[str, Any]:
    return {"kind": kind.__name__, "reason": reason}


# -- in the process --------------------------------------------------------------------------------


def _answer(folder: str, limits: ExaminationLimits, seconds: int, answers: Connection) -> None:
    _confine(limits.memory_bytes, seconds)
    try:
        found: dict[str, Any] = {"description": _describe(Path(folder), limits)}
    except CheckpointError as error:
        found = _refusal(str(error))
    except OSError as error:
        found = _refusal(f"the adapter could not be examined: {error}", ExaminationError)
    except Exception as error:
        # PyTorch's own error of too little memory is a `RuntimeError`.
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            reason = f"found no room in {limits.memory_bytes} bytes of memory, expected it to do"
        else:
            reason = f"found {type(error).__name__} in its examination, expected none"
        found = _refusal(reason)
    with suppress(BrokenPipeError):  # nobody is there any more to hear it
        answers.send_bytes(json.dumps(found).encode())


def _describe(folder: Path, limits: ExaminationLimits) -> dict[str, Any]:
    tensor_bytes = min(limits.tensor_bytes, DEFAULT_LIMITS.tensor_bytes)
    checkpoint, _ = read_adapter(folder, limits=replace(DEFAULT_LIMITS, tensor_bytes=tensor_bytes))
    return asdict(describe(checkpoint))


def _confine(memory_bytes: int, seconds: int) -> None:
    """Sets this process's limits, which it cannot raise again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the server, which ends it
    torch.set_num_threads(1)
    with suppress(OSError):  # where memory is short, this process goes and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_AS, mapped + memory_bytes),
    ):
        _lower(what, limit, limit)
    _lower(resource.RLIMIT_CPU, seconds, seconds + 1)
    sys.addaudithook(_forbid)


def _lower(what: int, soft: int, hard: int) -> None:
    _, before = resource.getrlimit(what)
    if before != resource.RLIM_INFINITY:
        soft, hard = min(soft, before), min(hard, before)
    resource.setrlimit(what, (soft, hard))


def _forbid(event: str, _: tuple[Any, ...]) -> None:
    if event.startswith(_FORBIDDEN):
        raise PermissionError(f"an examination does nothing like {event}")
