"""Threads spin at barriers while the cores are theirs, and sleep while others want them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from remix_runtime import barriers
from remix_runtime.barriers import (
    BRIEF_SPIN_COUNT,
    BarrierWatch,
    Seconds,
    thread_times,
    watch_barriers,
)


class Kernel:
    """Adds up what each thread did in every period. Each is (computed, waited), in seconds."""

    def __init__(self) -> None:
        self.times: dict[int, Seconds] = {}

    def __call__(self) -> dict[int, Seconds]:
        return dict(self.times)

    def pass_period(self, *threads: Seconds) -> None:
        for thread, (computed, waited) in enumerate(threads):
            before = self.times.get(thread, (0.0, 0.0))
            self.times[thread] = before[0] + computed, before[1] + waited


class FakeCrowd:
    standing = 0

    @classmethod
    def gather(cls) -> FakeCrowd:
        cls.standing += 1
        return cls()

    def leave(self) -> None:
        FakeCrowd.standing -= 1


QUIET = ((0.1, 0.001), (0.1, 0.002))
BESIDE = ((0.1, 0.001), (0.05, 0.05))  # one of our threads shares its core
IDLE = ((0.001, 0.0), (0.0, 0.0))
STALLED = ((0.0, 0.0), (0.001, 0.01))  # too little to tell anything


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    monkeypatch.setattr(barriers, "Crowd", FakeCrowd)
    yield Kernel()
    assert FakeCrowd.standing == 0


def look(watch: BarrierWatch, kernel: Kernel, periods: Iterable[tuple[Seconds, ...]]) -> list[bool]:
    found = []
    for period in periods:
        kernel.pass_period(*period)
        watch.look()
        assert FakeCrowd.standing == watch.crowded
        found.append(watch.crowded)
    return found


@pytest.mark.parametrize(
    ("periods", "crowded"),
    [
        pytest.param([QUIET] * 4, "....", id="quiet"),
        pytest.param([BESIDE] * 4, ".xxx", id="beside others"),
        pytest.param([BESIDE, QUIET, BESIDE, QUIET], "....", id="a period is chance"),
        pytest.param([BESIDE, IDLE, STALLED, BESIDE], "...x", id="no work tells nothing"),
        pytest.param([BESIDE] * 2 + [QUIET] * 5, ".xxxxx.", id="the others have gone"),
        pytest.param([BESIDE] * 2 + [IDLE] * 7, ".xxxxxxxx", id="they may still be there"),
        pytest.param(
            [BESIDE] * 2 + [QUIET] * 4 + [BESIDE] + [QUIET] * 5, ".xxxxxxxxxx.", id="calm in a row"
        ),
        pytest.param(
            [((0.1, 0.0),) * 31 + ((0.05, 0.05),)] * 2, ".x", id="one of many cores is enough"
        ),
    ],
)
def test_a_crowd_stands_while_a_thread_waits_for_a_core(
    kernel: Kernel, periods: list[tuple[Seconds, ...]], crowded: str
) -> None:
    watch = BarrierWatch(kernel)
    assert look(watch, kernel, periods) == [mark == "x" for mark in crowded]
    look(watch, kernel, [QUIET] * 5)


def test_what_was_before_the_watch_does_not_count(kernel: Kernel) -> None:
    kernel.pass_period((0.0, 100.0))
    watch = BarrierWatch(kernel)
    assert look(watch, kernel, [((0.1, 0.0),)] * 3) == [False] * 3


def test_a_watch_that_stops_leaves_no_crowd(kernel: Kernel) -> None:
    watch = BarrierWatch(kernel)
    look(watch, kernel, [BESIDE] * 2)
    watch.start()
    watch.stop()
    assert FakeCrowd.standing == 0


_LIBGOMP = """
import time
from pathlib import Path
import torch
from remix_runtime.barriers import Crowd

TASKS = Path("/proc/self/task")

def threads():
    return {task.name for task in TASKS.iterdir()}

torch.set_num_threads(2)
before = threads()
x = torch.zeros(1 << 17)
x.add_(1)
(other,) = threads() - before
pool = threads()
main = Path("/proc/self").resolve().name

def naps():
    \"\"\"How often the two that meet at barriers, whoever came first, slept by themselves.\"\"\"
    texts = [(TASKS / name / "status").read_text() for name in (main, other)]
    return sum(int(text.split("\\nvoluntary_ctxt_switches:")[1].split()[0]) for text in texts)

def regions():
    before = naps()
    for _ in range(100):
        x.add_(1)
    return naps() - before

alone = regions()
crowd = Crowd.gather()
beside = regions()
crowd.leave()
while threads() - pool:  # they end a little later
    time.sleep(0.001)
again = regions()
print(alone, beside, again)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no barrier")
def test_libgomp_lets_its_threads_sleep_in_a_crowd() -> None:
    """They would spin for ever: what sleeps sleeps because of the crowd, and again not after it."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    environment |= {"GOMP_SPINCOUNT": str(10**15), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", _LIBGOMP],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    alone, beside, again = map(int, done.stdout.split())
    assert alone < 10
    assert beside >= 50
    assert again < 10


def test_without_libgomp_there_is_nobody_to_let_sleep() -> None:
    code = "from remix_runtime.barriers import Crowd; assert Crowd.gather() is None"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_times_of_this_process_are_those_that_the_kernel_keeps() -> None:
    sum(range(1_000_000))
    assert os.getpid() in thread_times()
    assert all(min(times) >= 0 for times in thread_times().values())


def test_where_the_kernel_does_not_tell_threads_spin_briefly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert thread_times(tmp_path) == {}
    monkeypatch.setattr(barriers, "thread_times", dict)
    environment: dict[str, str] = {}
    assert watch_barriers(environment) is None
    assert environment == {"GOMP_SPINCOUNT": BRIEF_SPIN_COUNT}


@pytest.mark.parametrize("said", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_what_the_user_said_stands(said: dict[str, str]) -> None:
    environment = dict(said)
    assert watch_barriers(environment) is None
    assert environment == said


def test_the_command_line_watches() -> None:
    code = (
        "import sys, threading; sys.argv = ['remix', '--version']\n"
        "from remix_runtime.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([t.name for t in threading.enumerate()])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert "remix-barriers" in done.stdout


def test_a_look_that_fails_is_logged_once_and_looks_go_on(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(barriers, "PERIOD_SECONDS", 0.001)
    monkeypatch.setattr(barriers, "_LAST_PAUSE_SECONDS", 0.001)
    looks, is_well = threading.Semaphore(0), threading.Event()

    def read() -> dict[int, Seconds]:
        looks.release()
        if looked and not is_well.is_set():
            raise OSError("too many open files")
        return kernel()

    looked = False
    watch = BarrierWatch(read)
    looked = True
    watch.start()
    for _ in range(5):
        assert looks.acquire(timeout=60)
    is_well.set()
    for _ in range(5):
        assert looks.acquire(timeout=60)
    assert watch.is_alive()
    watch.stop()
    assert len([line for line in caplog.messages if "not watched" in line]) == 1
