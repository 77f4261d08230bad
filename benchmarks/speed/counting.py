"""What counting the activations of experts costs: steps with it against the same steps without.

`python -m benchmarks.speed.counting` decodes 1, 8 and 32 sequences on four adapters (n 8, k 4, r 8,
feed-forward linears) and computes a prompt in one chunk. The same step runs with and without
counters in turns, in one process; the median of the rounds' ratios counts. `--cpu-time` is for a
machine that others use: what the process had of one core, on one thread.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import typer

from benchmarks.adapters import write_random_adapters
from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds, spread
from benchmarks.shape import AdapterShape
from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.embedded.startup import build_core

ADAPTERS = 4
CONTEXT = 64
"""Tokens before the one that a step decodes."""
BATCHES = (1, 8, 32)
PROMPT = 512


def make_core(base: Path, folders: Sequence[Path], threads: int) -> tuple[EngineCore, list[str]]:
    """An engine's core, and the digests of its adapters."""
    core = build_core(
        EmbeddedConfig(
            model=str(base), device="cpu", dtype="float32", threads=threads, max_model_len=1024
        )
    )
    digests = []
    for folder in folders:
        adapter = core.bank.prepare(read_checkpoint(folder))
        core.bank.add(adapter)
        digests.append(adapter.digest)
    return core, digests


def make_job(core: EngineCore, digest: str, tokens: int) -> Job:
    request = GenerationRequest(
        request_id="benchmark",
        prompt_token_ids=tuple(random.choices(range(core.runner.model.vocab_size), k=tokens)),
        params=SamplingParams(max_tokens=1),
        digest=digest,
    )
    job = Job(request, Completion(request, core.runner.tokenizer, ()))
    pages = core.scheduler.pool.take(core.scheduler.pool.pages_for(tokens))
    slot = core.bank.pin_slot(digest)
    assert pages is not None
    assert slot is not None
    job.pages, job.slot = pages, slot
    return job


def make_step(core: EngineCore, digests: Sequence[str], batch: int) -> list[Chunk]:
    """One token of each of `batch` sequences on the adapters in turn, after `CONTEXT` others."""
    jobs = [make_job(core, digests[i % len(digests)], CONTEXT + 1) for i in range(batch)]
    jobs.sort(key=lambda job: job.slot)
    core.runner.run([Chunk(job, 0, CONTEXT) for job in jobs])
    return [Chunk(job, CONTEXT, 1) for job in jobs]


def counter_switch(core: EngineCore) -> Callable[[bool], None]:
    """A function that takes the counters out of all tables, and puts them back."""
    rows = [
        (table, slot, weights)
        for table in core.bank._tables.values()
        for slot, weights in enumerate(table.slots)  # type: ignore[attr-defined]
        if weights is not None
    ]

    def switch(on: bool) -> None:
        for table, slot, weights in rows:
            table.set(slot, weights if on else replace(weights, counts_n=None))

    return switch


def main(
    base: Base,
    threads: int = torch.get_num_threads(),
    seconds: float = 120.0,
    cpu_time: bool = False,
    out: Out = None,
) -> None:
    """Time steps with and without counters; `seconds` is the time for each batch."""
    clock = time.process_time if cpu_time else time.perf_counter
    threads = 1 if cpu_time else threads
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as folder:
        folders = write_random_adapters(Path(folder), base, AdapterShape(n=8, k=4, r=8), ADAPTERS)
        core, digests = make_core(base, folders, threads)
        cases = {f"decode {batch}": make_step(core, digests, batch) for batch in BATCHES}
        cases[f"prompt of {PROMPT}"] = [Chunk(make_job(core, digests[0], PROMPT), 0, PROMPT)]
        switch = counter_switch(core)

        for name, chunks in cases.items():

            def timed(on: bool, chunks: list[Chunk] = chunks) -> float:
                switch(on)
                core.runner.run(chunks)  # the caches as a step of the same kind leaves them
                start = clock()
                core.runner.run(chunks)
                return clock() - start

            sides = {on: lambda number, on=on, timed=timed: timed(on) for on in (True, False)}
            found = run_rounds({name: sides}, warm_up=2, seconds=seconds)[name]
            of_base = ratio(found[True], found[False])
            assert of_base is not None, "round 0 is always complete"
            ms = spread([1000 * taken for taken in found[False].values()])
            cost = f"{100 * (of_base.median - 1):+.2f} %"
            rows.append([name, of_base.rounds, f"{ms.median:.1f}", cost])
    publish(
        out,
        "What counting activations costs",
        f"{threads} threads, {ADAPTERS} adapters mixed, {base.name}, {clock.__name__}.",
        Table(["step", "rounds", "ms without", "with counters"], rows),
    )


if __name__ == "__main__":
    typer.run(main)
