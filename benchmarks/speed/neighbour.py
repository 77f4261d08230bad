"""What it costs when others want the processor too: start-up and decoding alone, beside one busy
process, and under a quota of one core.

In one process of the engine the threads wait at OpenMP's barriers as `remix` has them: they spin
until others want the cores. In the other they always spin, as OpenMP does by itself. Every round
starts every process anew, since where its memory lies makes a tenth of a difference. The neighbour
is one endless loop: on C cores with T threads a fair share leaves (T + 1) / C of the time alone.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

from benchmarks.adapters import empty_model
from benchmarks.machine import describe_machine
from benchmarks.quota import cpu_quota, may_set_quota
from benchmarks.result import Table, publish
from benchmarks.rounds import Report, Spread, ratio, run_rounds
from benchmarks.speed.determinism import SYSTEM
from benchmarks.speed.plan import random_workload
from benchmarks.speed.worker import Worker, WorkerError
from remix_runtime.errors import ConfigError

WAITS: dict[str, dict[str, str]] = {"watched": {}, "spinning": {"GOMP_SPINCOUNT": "300000"}}
"""What the process is told: nothing, and what libgomp does by itself."""

ALONE, BESIDE, QUOTA = "alone", "beside", "one core"

START = "start"

_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

Side = tuple[str, str]
"""How threads wait, and where the process stands."""


def run_neighbour(
    base: Path,
    stem: Path,
    batches: Sequence[int],
    new_tokens: int,
    rounds: int,
    threads: int,
    report: Report,
) -> None:
    """Measures, prints, writes `stem`.json and .md. Raises `ConfigError`."""
    vocab_size = empty_model(base).config.vocab_size
    options = {"engine": {"model": str(base), "device": "cpu", "threads": threads}}
    places = [ALONE, BESIDE, QUOTA] if may_set_quota() else [ALONE, BESIDE]

    def measure(log: Path, wait: str, place: str, number: int) -> dict[str, float]:
        report(f"neighbour: round {number + 1}, threads wait {wait}, {place}")
        with _at(place):
            start = time.perf_counter()
            env = WAITS[wait]
            worker = Worker(wait, SYSTEM, options, log=log, threads=threads, env=env)
            seconds = {START: time.perf_counter() - start}
            with closing(worker):
                for batch in (min(batches), *batches):  # the first one warms up
                    seed = f"{number} {batch}"
                    load = random_workload(batch, 16, new_tokens, [None], vocab_size, seed)
                    start = time.perf_counter()
                    worker.run(load)
                    seconds[f"{batch} requests"] = time.perf_counter() - start
        return seconds

    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        sides = {
            (wait, place): partial(measure, Path(name) / "log", wait, place)
            for wait, place in itertools.product(WAITS, places)
        }
        try:
            found = run_rounds({"": sides}, rounds=rounds, report=report)[""]
        except WorkerError as error:
            raise ConfigError(f"bench: {error}") from None
    _write(stem, found, threads)


def _at(place: str) -> AbstractContextManager[None]:
    if place == BESIDE:
        return neighbour()
    return cpu_quota(1) if place == QUOTA else nullcontext()


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that never rests, as long as this one lives."""
    process = subprocess.Popen([sys.executable, "-c", _LOOP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _write(
    stem: Path, found: Mapping[Side, Mapping[int, Mapping[str, float]]], threads: int
) -> None:
    machine = describe_machine()
    works = list(next(iter(next(iter(found.values())).values())))

    def seconds(work: str, wait: str, place: str) -> dict[int, float]:
        return {number: run[work] for number, run in found.get((wait, place), {}).items()}

    def show(spread: Spread | None) -> str:
        return spread.show(2) if spread else "not measured"

    rows = [
        [
            work,
            wait,
            show(ratio(seconds(work, wait, ALONE), seconds(work, "spinning", ALONE))),
            *(
                show(ratio(seconds(work, wait, place), seconds(work, against, ALONE)))
                for place in (BESIDE, QUOTA)
                for against in ("spinning", wait)
            ),
        ]
        for work in works
        for wait in WAITS
    ]
    publish(
        stem,
        "Beside others",
        "Times over those of spinning threads alone in the same round, and over the same threads "
        f"alone: median (least to most). {threads} threads on {machine['cores']} cores, where a "
        f"fair share beside one busy process is {(threads + 1) / machine['cores']:.2f}, and of one "
        f"core {min(threads, machine['cores']):.2f}.",
        Table(
            [
                "work",
                "threads wait",
                "alone",
                "beside",
                "beside / alone",
                "one core",
                "one core / alone",
            ],
            rows,
        ),
        machine=machine,
        seconds={
            work: {
                f"{wait}, {place}": list(seconds(work, wait, place).values())
                for wait, place in found
            }
            for work in works
        },
    )
