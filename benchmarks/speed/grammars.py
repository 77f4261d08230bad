"""What a grammar costs: per token in the engine, and in two libraries that compile it.

In the engine every request follows a JSON schema of its own, or none, in turn; all write the same
number of tokens. The time of a decode step counts, and beside it the processor's time for the whole
batch, which other work on the machine changes less. Then schemas are compiled, and masks made along
a value that meets them, by llguidance and, where it is installed, by xgrammar.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llguidance import LLMatcher
from transformers import PreTrainedTokenizerBase

from benchmarks.machine import describe_machine
from benchmarks.result import Table, publish
from benchmarks.rounds import Report, from_thread, percentile, ratio, run_rounds, spread
from benchmarks.speed.schemas import Sample, endless_schema, random_schema
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.contracts import (
    GenerationRequest,
    Grammar,
    GrammarKind,
    ModelInfo,
    SamplingParams,
)
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.grammar import compiled, model_tokenizer

SCHEMAS = 100
_PROMPT = "List what you know of the people in this town, as JSON:\n"
_NUMBERS = itertools.count()

Side = tuple[str, bool]
"""How tokens are chosen, and whether they follow a schema."""

Cost = tuple[float, float]
"""Seconds of a decode step, and the process's processor seconds for a token of the batch."""


def run_grammars(
    base: Path,
    stem: Path,
    batches: Sequence[int],
    new_tokens: int,
    rounds: int,
    threads: int,
    report: Report,
) -> None:
    """Measures, prints, writes `stem`.json and .md. Raises `ConfigError`."""
    report(f"grammars: {SCHEMAS} schemas in each library")
    libraries = _libraries(load_tokenizer(str(base)))
    costs = asyncio.run(_steps(base, batches, new_tokens, rounds, threads, report))
    _write(stem, costs, libraries, threads, new_tokens)


# -- in the engine ------------------------------------------------------------------------------


async def _steps(
    base: Path, batches: Sequence[int], new_tokens: int, rounds: int, threads: int, report: Report
) -> dict[int, dict[Side, dict[int, Cost]]]:
    """What a batch cost, by size, side and round."""
    config = EmbeddedConfig(
        model=str(base), threads=threads, max_running=max(batches), proposals=False
    )
    engine = EmbeddedEngine(config)
    await engine.start()
    prompt = tuple(engine.tokenizer.encode(_PROMPT, add_special_tokens=False))
    rng = random.Random(0)
    grammars = [
        Grammar(kind=GrammarKind.JSON_SCHEMA, text=json.dumps(endless_schema(rng)))
        for _ in range(max(batches))
    ]
    loop = asyncio.get_running_loop()

    def request(row: int, side: Side, number: int) -> GenerationRequest:
        how, follows = side
        return GenerationRequest(
            request_id=f"benchmark-{next(_NUMBERS)}",
            prompt_token_ids=prompt,
            params=SamplingParams(
                max_tokens=new_tokens,
                temperature=0.0 if how == "greedy" else 1.0,
                seed=1000 * number + row,
                ignore_eos=True,
                grammar=grammars[row] if follows else None,
            ),
        )

    async def times(item: GenerationRequest) -> list[float]:
        return [time.perf_counter() async for _ in engine.generate(item)]

    async def run(batch: int, side: Side, number: int) -> Cost:
        report(f"grammars: round {number + 1}, {batch} requests, {side[0]}, schema {side[1]}")
        begin = time.process_time()
        rows = await asyncio.gather(*(times(request(i, side, number)) for i in range(batch)))
        processor = (time.process_time() - begin) / (batch * new_tokens)
        decode = max(row[-1] for row in rows) - max(row[0] for row in rows)
        return decode / (new_tokens - 1), processor

    def measured(batch: int, side: Side) -> Callable[[int], Cost]:
        return from_thread(loop, lambda number: run(batch, side, number))

    sides = list(itertools.product(("greedy", "sampled"), (False, True)))
    cases = {batch: {side: measured(batch, side) for side in sides} for batch in batches}
    try:
        return await asyncio.to_thread(run_rounds, cases, rounds=rounds, warm_up=1, report=report)
    finally:
        await engine.stop()


# -- in the libraries ---------------------------------------------------------------------------

Walk = tuple[float, list[float]]
"""Seconds to compile a schema, and of each mask along a value."""


def _libraries(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Walk]]:
    rng = random.Random(1)
    samples = [random_schema(rng) for _ in range(SCHEMAS)]
    found = {f"llguidance {version('llguidance')}": _llguidance(tokenizer, samples)}
    try:
        xgrammar = importlib.import_module("xgrammar")
    except ImportError:
        return found
    return found | {f"xgrammar {version('xgrammar')}": _xgrammar(xgrammar, tokenizer, samples)}


def _llguidance(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]) -> list[Walk]:
    ends = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
    model = ModelInfo(
        name="", max_model_len=1, vocab_size=len(tokenizer), eos_token_ids=ends, max_requests=1
    )
    known = model_tokenizer(tokenizer, model)

    def start(text: str) -> LLMatcher:
        return compiled(Grammar(kind=GrammarKind.JSON_SCHEMA, text=text), known).deep_copy()

    return [
        _walk(start, lambda m: m.compute_logit_bias(), lambda m, t: m.consume_token(t), sample,
              tokenizer)
        for sample in samples
    ]  # fmt: skip


def _xgrammar(
    library: Any, tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sample]
) -> list[Walk]:
    info = library.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    compiler = library.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    mask = library.allocate_token_bitmask(1, len(tokenizer))

    def start(text: str) -> Any:
        return library.GrammarMatcher(compiler.compile_json_schema(text))

    return [
        _walk(start, lambda m: m.fill_next_token_bitmask(mask, 0), lambda m, t: m.accept_token(t),
              sample, tokenizer)
        for sample in samples
    ]  # fmt: skip


def _walk(
    start: Callable[[str], Any],
    mask: Callable[[Any], object],
    take: Callable[[Any, int], bool],
    sample: Sample,
    tokenizer: PreTrainedTokenizerBase,
) -> Walk:
    schema, value = sample
    begin = time.perf_counter()
    matcher = start(json.dumps(schema))
    compile_seconds = time.perf_counter() - begin
    seconds = []
    for token_id in tokenizer.encode(json.dumps(value), add_special_tokens=False):
        begin = time.perf_counter()
        mask(matcher)
        seconds.append(time.perf_counter() - begin)
        if not take(matcher, token_id):
            raise ValueError(f"a value of the benchmark does not meet its schema: {value}")
    return compile_seconds, seconds


# -- the result ---------------------------------------------------------------------------------


def _write(
    stem: Path,
    costs: Mapping[int, Mapping[Side, Mapping[int, Cost]]],
    libraries: Mapping[str, Sequence[Walk]],
    threads: int,
    new_tokens: int,
) -> None:
    machine = describe_machine()
    rows = []
    for batch, sides in costs.items():
        for how in ("greedy", "sampled"):
            plain, follows = sides[how, False], sides[how, True]
            shares = [ratio(_part(follows, part), _part(plain, part)) for part in (0, 1)]
            steps = [spread(list(_part(side, 0).values())) for side in (plain, follows)]
            rows.append(
                [batch, how, *(f"{1e3 * step.median:.1f}" for step in steps),
                 *(share.show(3) for share in shares if share is not None)]
            )  # fmt: skip
    masks = {name: [s for _, found in walks for s in found] for name, walks in libraries.items()}
    compiles = {name: [first for first, _ in walks] for name, walks in libraries.items()}

    def show(values: Sequence[float], unit: float, digits: int) -> list[str]:
        return [f"{unit * percentile(values, share):.{digits}f}" for share in (0.5, 0.99, 1.0)]

    publish(
        stem,
        "What a grammar costs",
        "A JSON schema of its own in every row, against none, ratios within the same round: median "
        f"(least to most). {new_tokens} tokens, {threads} threads.",
        Table(
            ["requests", "tokens are", "step without, ms", "with", "ratio", "ratio of CPU time"],
            rows,
        ),
        f"{SCHEMAS} random schemas, compiled and followed along a value in one thread: p50, p99 "
        "and most.",
        Table(
            ["library", "compile ms", "", "", "mask µs", "", ""],
            [
                [name, *show(compiles[name], 1e3, 2), *show(masks[name], 1e6, 0)]
                for name in libraries
            ],
        ),
        machine=machine,
        costs={
            f"{batch} requests": {
                f"{how}, {'schema' if follows else 'none'}": list(found.values())
                for (how, follows), found in sides.items()
            }
            for batch, sides in costs.items()
        },
    )


def _part(costs: Mapping[int, Cost], part: int) -> dict[int, float]:
    return {number: cost[part] for number, cost in costs.items()}
