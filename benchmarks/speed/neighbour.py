"""What another busy process on the machine costs: start-up and decoding, beside it and alone.

Two processes of the same engine take turns. In one the threads wait briefly at OpenMP's barriers,
as `remix` has them; in the other they spin, as OpenMP does by itself. The neighbour is one endless
loop. On C cores with T threads its fair share leaves (T + 1) / C of the time alone.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from benchmarks.adapters import empty_model
from benchmarks.machine import describe_machine
from benchmarks.result import Table, publish
from benchmarks.rounds import Report, Spread, ratio, run_rounds
from benchmarks.speed.determinism import SYSTEM
from benchmarks.speed.plan import random_workload
from benchmarks.speed.worker import Worker, WorkerError
from remix_runtime.errors import ConfigError
from remix_runtime.threads import SPIN_COUNT

WAITS = {"briefly": SPIN_COUNT, "spinning": "300000"}
"""Values of GOMP_SPINCOUNT: ours, and that of libgomp by itself."""

_LOOP = """
import os
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""

Side = tuple[str, bool]
"""How threads wait, and whether the neighbour is there."""


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
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name, ExitStack() as stack:

        def start(wait: str) -> Worker:
            log, env = Path(name) / "log", {"GOMP_SPINCOUNT": WAITS[wait]}
            return Worker(wait, SYSTEM, options, log=log, threads=threads, env=env)

        def work(batch: int | None, wait: str, number: int) -> None:
            if batch is None:
                start(wait).close()
            else:
                seed = f"{number} {batch}"
                load = random_workload(batch, 16, new_tokens, [None], vocab_size, seed)
                workers[wait].run(load)

        def side(batch: int | None, wait: str, busy: bool) -> Callable[[int], float]:
            return lambda number: _seconds(lambda: work(batch, wait, number), busy)

        sides = list(itertools.product(WAITS, (False, True)))
        cases: dict[str, dict[Side, Callable[[int], float]]] = {
            f"{batch} requests" if batch else "start": {at: side(batch, *at) for at in sides}
            for batch in (*batches, None)
        }
        try:
            workers = {wait: stack.enter_context(closing(start(wait))) for wait in WAITS}
            for wait in workers:
                report(f"neighbour: warming up, threads wait {wait}")
                work(max(batches), wait, -1)
            seconds = run_rounds(cases, rounds=rounds, report=report)
        except WorkerError as error:
            raise ConfigError(f"bench: {error}") from None
    _write(stem, seconds, threads)


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that never rests, as long as this one lives."""
    process = subprocess.Popen([sys.executable, "-c", _LOOP])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _seconds(call: Callable[[], None], busy: bool) -> float:
    with ExitStack() as stack:
        if busy:
            stack.enter_context(neighbour())
            time.sleep(0.1)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def _write(
    stem: Path, seconds: Mapping[str, Mapping[Side, Mapping[int, float]]], threads: int
) -> None:
    machine = describe_machine()

    def show(found: Spread | None) -> str:
        return found.show(2) if found else ""

    rows = [
        [
            case,
            wait,
            show(ratio(sides[wait, False], sides["spinning", False])),
            show(ratio(sides[wait, True], sides["spinning", False])),
            show(ratio(sides[wait, True], sides[wait, False])),
        ]
        for case, sides in seconds.items()
        for wait in WAITS
    ]
    publish(
        stem,
        "One busy neighbour",
        "Times alone and beside it, over that of spinning threads alone in the same round: median "
        f"(least to most). {threads} threads on {machine['cores']} cores, where a fair share "
        f"beside one busy process is {(threads + 1) / machine['cores']:.2f}.",
        Table(
            ["work", "threads wait", "alone", "beside", "beside / alone"],
            rows,
        ),
        machine=machine,
        seconds={
            case: {
                f"{wait}, {'beside' if busy else 'alone'}": list(rounds.values())
                for (wait, busy), rounds in sides.items()
            }
            for case, sides in seconds.items()
        },
    )
