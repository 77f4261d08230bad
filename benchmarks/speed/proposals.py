"""What proposals give: tasks whose answers repeat their prompts, and chat, whose answers do not.

One engine answers each task twice, with proposals and without, in turn; the answers must be the
same. Seconds count from the first token of every request to the last one of all.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import typer

from benchmarks.options import Base, Out
from benchmarks.result import Table, publish
from benchmarks.rounds import ratio, run_rounds, spread
from benchmarks.speed.copying import TASKS, Task
from remix_runtime.contracts import GenerationRequest, Grammar, GrammarKind, SamplingParams
from remix_runtime.engines.embedded import EmbeddedConfig
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.engines.front import Prepared
from remix_runtime.engines.grammar import Matcher, compiled, model_tokenizer
from remix_runtime.threads import available_cores

_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Run:
    """What the answers of one batch took."""

    seconds: float
    processor_seconds: float
    tokens: tuple[tuple[int, ...], ...]
    proposed: int
    accepted: int

    @property
    def rate(self) -> float:
        """Tokens a second behind the first ones."""
        return self._counted / self.seconds

    @property
    def processor_rate(self) -> float:
        """The same by the processor's time, which other work on the machine changes less."""
        return self._counted / self.processor_seconds

    @property
    def _counted(self) -> int:
        return sum(map(len, self.tokens)) - len(self.tokens)


class Bench:
    def __init__(self, core: EngineCore, new_tokens: int) -> None:
        self._core = core
        self._new_tokens = new_tokens
        self._known = model_tokenizer(core.runner.tokenizer.own, core.runner.model)

    def run(self, tasks: list[Task], *, proposes: bool, temperature: float) -> Run:
        core = self._core
        core.proposes = proposes
        proposed, accepted = core.num_proposed, core.num_accepted
        found: dict[str, list[int]] = {}
        for seed, task in enumerate(tasks):
            name = f"benchmark-{next(_NUMBERS)}"
            found[name] = []
            core.add(self._request(name, task, temperature, seed), self._prepared(task))
        begin = processor_begin = 0.0
        while core.has_work:
            for output in core.step():
                if isinstance(output.event, Exception):
                    raise output.event
                found[output.request_id] += output.event.token_ids
            if not begin and all(found.values()):
                begin, processor_begin = time.perf_counter(), time.process_time()
        return Run(
            time.perf_counter() - begin,
            time.process_time() - processor_begin,
            tuple(map(tuple, found.values())),
            core.num_proposed - proposed,
            core.num_accepted - accepted,
        )

    def _request(self, name: str, task: Task, temperature: float, seed: int) -> GenerationRequest:
        prompt = self._core.runner.tokenizer.apply_chat_template(
            [{"role": "user", "content": task.prompt}]
        )
        return GenerationRequest(
            request_id=name,
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(max_tokens=self._new_tokens, temperature=temperature, seed=seed),
        )

    def _prepared(self, task: Task) -> Prepared:
        if task.schema is None:
            return Prepared()
        grammar = Grammar(kind=GrammarKind.JSON_SCHEMA, text=task.schema)
        return Prepared(matcher=Matcher(compiled(grammar, self._known)))


def main(
    base: Base,
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, each with other texts.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 256,
    only: Annotated[str, typer.Option(help="Tasks whose name has this.")] = "",
    out: Out = None,
) -> None:
    """Compare the engine with proposals and without, on texts that repeat and on chat."""
    threads = available_cores()
    core = build_core(EmbeddedConfig(model=str(base), threads=threads, max_running=max(32, batch)))
    if not core.runner.is_native:
        raise typer.BadParameter("this machine has no C compiler: nothing is proposed")
    bench = Bench(core, new_tokens)

    def side(
        make: Callable[[int], Task], temperature: float, proposes: bool
    ) -> Callable[[int], Run]:
        return lambda number: bench.run(
            [make(max(number, 0) * batch + i) for i in range(batch)],
            proposes=proposes,
            temperature=temperature,
        )

    cases = {
        f"{name}, sampled" if temperature else name: {
            proposes: side(make, temperature, proposes) for proposes in (True, False)
        }
        for name, make in TASKS.items()
        for temperature in ((0.0, 0.8) if name == "chat" else (0.0,))
        if only in name
    }
    found = run_rounds(cases, rounds=rounds, warm_up=1, report=lambda line: print(line, flush=True))
    publish(
        out,
        f"Several tokens a step, {base.name}",
        f"The same answers with proposals and without, {batch} at once, greedy or sampled at "
        f"temperature 0.8, at most {new_tokens} tokens, {threads} threads: tokens per second "
        "behind the first ones, and ratios within the same round, median (least to most).",
        Table(
            [
                *("task", "rounds", "tokens", "without", "with", "ratio", "ratio by CPU time"),
                "accepted of proposed",
            ],
            [_row(name, sides) for name, sides in found.items()],
        ),
        rates={
            name: {
                "with" if proposes else "without": [
                    (run.rate, run.processor_rate) for run in runs.values()
                ]
                for proposes, runs in sides.items()
            }
            for name, sides in found.items()
        },
    )


def _row(name: str, sides: Mapping[bool, Mapping[int, Run]]) -> list[object]:
    on, off = sides[True], sides[False]
    for number, run in on.items():
        if run.tokens != off[number].tokens:
            raise AssertionError(f"{name}: the answers of round {number} differ")

    def rates(of: str) -> list[dict[int, float]]:
        return [{number: getattr(run, of) for number, run in runs.items()} for runs in (off, on)]

    gains = [ratio(*reversed(rates(of))) for of in ("rate", "processor_rate")]
    accepted, proposed = (sum(getattr(run, of) for run in on.values())
                          for of in ("accepted", "proposed"))  # fmt: skip
    return [
        name,
        len(on),
        sum(len(tokens) for run in on.values() for tokens in run.tokens),
        *(f"{spread(list(each.values())).median:.1f}" for each in rates("rate")),
        *(gain.show(2) for gain in gains if gain is not None),
        f"{accepted} of {proposed}",
    ]


if __name__ == "__main__":
    typer.run(main)
