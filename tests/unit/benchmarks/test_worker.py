"""The pipe to a system's process: answers, failures, death, time-out, idle CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.speed.systems.protocol import Workload
from benchmarks.speed.worker import Worker, WorkerError

FAKE = "tests.unit.benchmarks.fake_system:FakeSystem"
Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(**options: Any) -> Worker:
            worker = Worker("fake", FAKE, options, log=tmp_path / "log", threads=1)
            stack.callback(worker.close)
            return worker

        yield begin


def _workload(length: int = 5, new_tokens: int = 3) -> Workload:
    return Workload([[2] * length, [3] * length], new_tokens, [None, 1])


def test_answers_come_back_and_noise_does_not(start: Start) -> None:
    worker = start(seconds_per_token=0.5)
    assert worker.about["version"] == "fake 1"
    for length in (5, 6):
        run = worker.run(_workload(length))
        assert run.arrivals == [[0.5, 1.0, 1.5]] * 2
        assert run.tokens == [[2 * length] * 3, [3 * length] * 3]


def test_a_system_that_cannot_start_says_why_in_one_line(start: Start) -> None:
    with pytest.raises(WorkerError) as caught:
        start(seconds_per_token=0)
    assert str(caught.value) == "fake: ValueError: seconds_per_token: expected more than 0"


def test_a_failed_workload_leaves_the_system_usable(start: Start) -> None:
    worker = start(seconds_per_token=1.0, broken_at=7)
    with pytest.raises(WorkerError, match="fake: RuntimeError: broken prompt"):
        worker.run(_workload(7))
    assert worker.run(_workload(8)).arrivals[0] == [1.0, 2.0, 3.0]


def test_a_process_that_dies_is_an_error_and_no_hang(start: Start) -> None:
    worker = start(seconds_per_token=1.0, dies_at=9)
    with pytest.raises(WorkerError, match=r"the process ended \(3\)"):
        worker.run(_workload(9))


def test_idle_cpu_tells_a_spinning_system_from_a_sleeping_one(start: Start) -> None:
    sleeping = start(seconds_per_token=1.0)
    spinning = start(seconds_per_token=1.0, spin=True)
    for worker in (sleeping, spinning):
        worker.run(_workload())
    begun, process = time.monotonic(), psutil.Process(spinning._process.pid)
    used = process.cpu_times().user
    # Others may have the cores, and then it spins for a part of the time only.
    while time.monotonic() - begun < 1.1 or process.cpu_times().user - used < 0.2:
        time.sleep(0.1)
    for worker in (sleeping, spinning):
        worker.run(_workload())
    assert sleeping.idle_cpu_share < spinning.idle_cpu_share / 5
