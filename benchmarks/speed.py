"""Interleaved rounds: every lane of a case runs once per round, one after the other, and only
then the next round begins. A slow moment of the machine hits all lanes or one round, not one
system."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Rates, agreement, rates
from benchmarks.plan import PROMPT_TOKENS, Case, Lane, rotations, workload
from benchmarks.systems.protocol import Run
from benchmarks.worker import Worker, WorkerError

_WARM_UP_PROMPT_TOKENS = 4096

Report = Callable[[str], None]
Detokenize = Callable[[Sequence[int]], str]


@dataclass(slots=True)
class Results:
    """Rates by case, lane and round, and what else the rounds showed."""

    rates: dict[Case, dict[Lane, dict[int, Rates]]] = field(default_factory=dict)
    agreement: dict[Case, dict[Lane, list[float]]] = field(default_factory=dict)
    """Share of each output equal to `generate`'s, one number per round."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a system or lane did not run, or stopped."""

    def values(self, case: Case, lane: Lane, metric: str) -> dict[int, float]:
        """Tokens per second by round; rounds without this metric are left out."""
        found = self.rates.get(case, {}).get(lane, {})
        values = {i: getattr(r, metric) for i, r in found.items()}
        return {i: value for i, value in values.items() if value is not None}


def run_rounds(
    grid: Sequence[Case],
    workers: Mapping[Lane, Worker],
    *,
    vocab_size: int,
    rounds: int,
    minutes: float,
    detokenize: Detokenize,
    report: Report,
) -> Results:
    """Warms every lane up, then measures. Rounds that would not end within `minutes` are left
    out, the dearest cases first; the first round is always complete."""
    results = Results()
    alive = dict(workers)
    started = time.monotonic()
    _warm_up(grid, alive, vocab_size, results, report)
    cost: dict[Case, float] = {}
    for round_index in range(rounds):
        for case in grid:
            left = minutes * 60 - (time.monotonic() - started)
            if round_index and cost[case] > left:
                report(f"round {round_index + 1}: {case.name} left out, {left:.0f} s are left")
                continue
            begin = time.monotonic()
            _run_case(case, alive, vocab_size, round_index, results, detokenize, report)
            cost[case] = time.monotonic() - begin
    return results


def _warm_up(
    grid: Sequence[Case],
    alive: dict[Lane, Worker],
    vocab_size: int,
    results: Results,
    report: Report,
) -> None:
    """Each lane sees every batch size and prompt kind once: compilation and first allocations
    are not measured. The dearest cases add no shape that the others have not shown."""
    for case in grid:
        if case.prefill or case.batch * PROMPT_TOKENS[case.prompt] > _WARM_UP_PROMPT_TOKENS:
            continue
        for lane in case.lanes():
            short = Case(case.batch, case.prompt, min(case.new_tokens, 4))
            _attempt(lane, short, alive, vocab_size, -1, results, report)
    report("warmed up")


def _run_case(
    case: Case,
    alive: dict[Lane, Worker],
    vocab_size: int,
    round_index: int,
    results: Results,
    detokenize: Detokenize,
    report: Report,
) -> None:
    runs: dict[Lane, Run] = {}
    for lane in rotations(case.lanes(), round_index):
        measured = _attempt(lane, case, alive, vocab_size, round_index, results, report)
        if measured is not None:
            runs[lane], rate = measured
            results.rates.setdefault(case, {}).setdefault(lane, {})[round_index] = rate
            shown = rate.prefill if case.prefill else rate.output
            report(f"round {round_index + 1}: {case.name}: {lane} {shown:.1f} tok/s")
    reference = runs.get(Lane.GENERATE)
    if reference is None:
        return
    for lane in (Lane.REMIX, Lane.LOADED, Lane.VLLM, Lane.LLAMACPP):
        if lane in runs:
            share = _agreement(runs[lane], reference, detokenize)
            results.agreement.setdefault(case, {}).setdefault(lane, []).append(share)


def _attempt(
    lane: Lane,
    case: Case,
    alive: dict[Lane, Worker],
    vocab_size: int,
    seed: int,
    results: Results,
    report: Report,
) -> tuple[Run, Rates] | None:
    if lane not in alive:
        return None
    asked = workload(case, lane, vocab_size, seed)
    try:
        run = alive[lane].run(asked)
        return run, rates(asked, run)
    except (WorkerError, ValueError) as error:
        results.failures[lane] = str(error)
        del alive[lane]
        report(f"{lane} is left out from here on: {error}")
        return None


def _agreement(run: Run, reference: Run, detokenize: Detokenize) -> float:
    if run.texts is None:
        return agreement(run.tokens, reference.tokens)
    return agreement(run.texts, [detokenize(tokens) for tokens in reference.tokens])
