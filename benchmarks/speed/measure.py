"""Rounds over the cases and lanes of the speed suite, and tokens per second from what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from benchmarks.agreement import agreement
from benchmarks.rounds import Report, run_rounds
from benchmarks.speed.plan import Case, Lane, workload
from benchmarks.speed.systems.protocol import Run, Workload
from benchmarks.speed.worker import Worker, WorkerError

_WARM_UP_PROMPT_TOKENS = 4096
_COMPARED = (
    *(Lane.FLOAT32, Lane.REMIX, Lane.LOADED, Lane.INT8, Lane.VLLM),
    *(Lane.LLAMACPP, Lane.LLAMACPP_BF16, Lane.LLAMACPP_Q8),
)
"""Lanes whose output should be `generate`'s, in 8 bits for the most part."""

Detokenize = Callable[[Sequence[int]], str]
Metric = Literal["output", "decode", "prefill"]


@dataclass(frozen=True, slots=True)
class Rates:
    """Tokens per second of one run."""

    output: float
    """All output tokens over the whole time, prefill included."""
    decode: float | None
    """Tokens after the moment when every request had its first; None if there are none."""
    prefill: float
    """Prompt tokens until the moment when every request had its first output token."""


def rates(workload: Workload, run: Run) -> Rates:
    """Raises `ValueError` where a request did not give exactly its number of tokens."""
    counts = {len(row) for row in run.arrivals}
    if counts != {workload.new_tokens}:
        raise ValueError(f"expected {workload.new_tokens} tokens per request, found {counts}")
    times = [t for row in run.arrivals for t in row]
    end = max(times)
    all_started = max(row[0] for row in run.arrivals)
    later = sum(t > all_started for t in times)
    return Rates(
        output=len(times) / end,
        decode=later / (end - all_started) if later else None,
        prefill=sum(len(p) for p in workload.prompts) / all_started,
    )


@dataclass(slots=True)
class Results:
    """Rates by case, lane and round, and what else the rounds showed."""

    rates: dict[Case, dict[Lane, dict[int, Rates]]] = field(default_factory=dict)
    agreement: dict[Case, dict[Lane, list[float]]] = field(default_factory=dict)
    """Share of each output equal to `generate`'s, one number per round."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a system or lane did not run, or stopped."""

    @property
    def num_rounds(self) -> int:
        lanes = [rounds for case in self.rates.values() for rounds in case.values()]
        return max((number + 1 for rounds in lanes for number in rounds), default=0)

    def values(self, case: Case, lane: Lane, metric: Metric) -> dict[int, float]:
        """Tokens per second by round; rounds without this metric are left out."""
        found = self.rates.get(case, {}).get(lane, {})
        values = {i: getattr(r, metric) for i, r in found.items()}
        return {i: value for i, value in values.items() if value is not None}


def measure(
    grid: Sequence[Case],
    workers: Mapping[Lane, Worker],
    *,
    vocab_size: int,
    rounds: int,
    minutes: float,
    detokenize: Detokenize,
    report: Report,
    before: Results | None = None,
) -> Results:
    """Warms every lane up, then measures for about so many minutes; the first round is always
    complete. A lane that fails is left out from there on. What was measured `before` with other
    processes comes first in the results."""
    results = before or Results()
    first = results.num_rounds
    alive = dict(workers)

    def run(case: Case, lane: Lane, number: int, *, is_warm_up: bool = False) -> Run | None:
        if lane not in alive:
            return None
        number += first
        asked = workload(case, lane, vocab_size, seed=-1 if is_warm_up else number)
        try:
            answer = alive[lane].run(asked)
            rate = rates(asked, answer)
        except (WorkerError, ValueError) as error:
            results.failures[lane] = str(error)
            del alive[lane]
            report(f"{lane} is left out from here on: {error}")
            return None
        if not is_warm_up:
            results.rates.setdefault(case, {}).setdefault(lane, {})[number] = rate
            shown = rate.prefill if case.prefill else rate.output
            report(f"round {number + 1}: {case}: {lane} {shown:.1f} tok/s")
        return answer

    # Each lane sees every batch size and prompt kind once, so compilation and first allocations
    # are not measured. The dearest cases add no shape that the others have not shown.
    warm_ups = [
        Case(case.batch, case.prompt, min(case.new_tokens, 4))
        for case in grid
        if not case.prefill and case.prompt_tokens <= _WARM_UP_PROMPT_TOKENS
    ]
    run_rounds(
        {c: {lane: partial(run, c, lane, is_warm_up=True) for lane in c.lanes()} for c in warm_ups},
        rounds=1,
    )
    report("warmed up")
    runs = run_rounds(
        {case: {lane: partial(run, case, lane) for lane in case.lanes()} for case in grid},
        rounds=rounds,
        seconds=minutes * 60,
        report=report,
    )
    for case, by_lane in runs.items():
        references = by_lane.get(Lane.GENERATE, {})
        for lane in _COMPARED if references else ():
            results.agreement.setdefault(case, {}).setdefault(lane, []).extend(
                _agreement(answer, references[i], detokenize)
                for i, answer in by_lane.get(lane, {}).items()
                if i in references
            )
    return results


def _agreement(run: Run, reference: Run, detokenize: Detokenize) -> float:
    if run.texts is None:
        return agreement(run.tokens, reference.tokens)
    return agreement(run.texts, [detokenize(tokens) for tokens in reference.tokens])
