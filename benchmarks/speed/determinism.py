"""Counts greedy tokens that change when nothing but the company of a request changes.

A fixed set of requests, on the base and on four strong random adapters, is decoded alone by the
first engine. Then every setting decodes the same requests in batches, in several compositions.
A *flip* is a request whose output differs; how far it agreed is kept. The target is zero.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.adapters import empty_model, write_random_adapters
from benchmarks.agreement import first_difference
from benchmarks.machine import describe_machine
from benchmarks.result import Table, publish
from benchmarks.rounds import Report
from benchmarks.shape import AdapterShape
from benchmarks.speed.plan import NUM_ADAPTERS
from benchmarks.speed.systems.protocol import Workload
from benchmarks.speed.worker import Worker, WorkerError
from remix_runtime.errors import ConfigError

SYSTEM = "benchmarks.speed.systems.embedded:EmbeddedSystem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is compared; the defaults take some minutes on two cores."""

    prompt_lengths: tuple[int, ...] = (3, 17, 40, 150)
    requests_per_length: int = 5
    new_tokens: int = 32
    compositions: tuple[int, ...] = (4, 20)
    """Requests that are decoded together."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One engine start. What differs from the first one must not change a token."""

    name: str
    engine: dict[str, Any]
    swap: bool = False


@dataclass(slots=True)
class Count:
    """What one composition under one setting compared and found."""

    setting: str
    composition: str
    requests: int = 0
    tokens: int = 0
    """Tokens compared: up to and with the first difference, the rest follows from it."""
    flips: int = 0
    agreed: list[int] = field(default_factory=list)
    """The number of tokens before each flip."""

    def add(self, output: list[int], reference: list[int]) -> None:
        same = first_difference(output, reference)
        flipped = not same == len(reference) == len(output)
        self.requests += 1
        self.tokens += same + flipped
        self.flips += flipped
        self.agreed += [same] * flipped


def settings(threads: int) -> list[Setting]:
    """The reference first; then a restart, other chunk budgets, no proposals, slots, a swap,
    weights and threads."""
    common = {"device": "cpu", "dtype": "float32", "threads": threads, "max_running": 32}
    other = 1 if threads > 1 else 2
    return [
        Setting("first start", common),
        Setting("restart", common),
        Setting("32 tokens per step", {**common, "max_tokens_per_step": 32}),
        Setting("1024 tokens per step", {**common, "max_tokens_per_step": 1024}),
        Setting("one token per step", {**common, "proposals": False}),
        Setting("2 adapter slots", {**common, "adapter_slots": 2}),
        Setting("adapters swapped before every batch", common, swap=True),
        Setting("weights widened to float32", {**common, "weights": "float32"}),
        Setting(f"{other} instead of {threads} threads", {**common, "threads": other}),
    ]


def requests(sizes: Sizes, vocab_size: int) -> Workload:
    """Requests of all lengths; base and adapters in turn within each length."""
    rng = random.Random(0)
    choices = [None, *range(NUM_ADAPTERS)]
    rows = [
        ([rng.randrange(vocab_size) for _ in range(length)], choices[i % len(choices)])
        for length in sizes.prompt_lengths
        for i in range(sizes.requests_per_length)
    ]
    return Workload([prompt for prompt, _ in rows], sizes.new_tokens, [a for _, a in rows])


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Indices 0 to `count` in a random order, `size` at a time."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    for start in range(0, count, size):
        yield order[start : start + size]


def run_determinism(
    base: Path,
    stem: Path,
    shape: AdapterShape,
    threads: int,
    report: Report,
    sizes: Sizes | None = None,
) -> None:
    """Counts, prints, writes `stem`.json and .md. Raises `ConfigError`."""
    sizes = sizes or Sizes()
    wanted = requests(sizes, empty_model(base).config.vocab_size)
    counts: list[Count] = []
    reference: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name:
        scratch = Path(name)
        adapters = write_random_adapters(scratch, base, shape, NUM_ADAPTERS)
        for setting in settings(threads):
            report(f"determinism: {setting.name}")
            options = {
                "engine": {"model": str(base), **setting.engine},
                "adapters": [str(folder) for folder in adapters],
                "swap": setting.swap,
            }
            process = {"log": scratch / "log", "threads": setting.engine["threads"]}
            try:
                with closing(Worker(setting.name, SYSTEM, options, **process)) as worker:
                    for size in (1, *sizes.compositions):
                        groups = batches(len(wanted.prompts), size, seed=len(counts))
                        outputs = _decode(worker, wanted, groups)
                        reference = reference or outputs
                        together = "alone" if size == 1 else f"{size} at once"
                        counts.append(Count(setting.name, together))
                        for output, expected in zip(outputs, reference, strict=True):
                            counts[-1].add(output, expected)
            except WorkerError as error:
                raise ConfigError(f"bench: {error}") from None
            report(f"determinism: flips so far: {sum(c.flips for c in counts)}")
    _write(stem, counts, sizes, shape)


def _decode(worker: Worker, wanted: Workload, groups: Iterable[list[int]]) -> list[list[int]]:
    """Output tokens by request, decoded group by group."""
    outputs: list[list[int]] = [[] for _ in wanted.prompts]
    for group in groups:
        prompts = [wanted.prompts[i] for i in group]
        adapters = [wanted.adapters[i] for i in group]
        run = worker.run(Workload(prompts, wanted.new_tokens, adapters))
        for i, output in zip(group, run.tokens, strict=True):
            outputs[i] = output
    return outputs


def _write(stem: Path, counts: list[Count], sizes: Sizes, shape: AdapterShape) -> None:
    machine = describe_machine()
    names = ("flips", "requests", "tokens")
    flips, requests, tokens = (sum(getattr(c, name) for c in counts) for name in names)
    publish(
        stem,
        "Determinism of the embedded engine",
        f"{flips} of {requests} requests flipped, {tokens} greedy tokens compared; the target is "
        f"0: {f'missed by {flips}' if flips else 'met'}.",
        f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}; base and four "
        f"random adapters ({shape}), prompts of {sizes.prompt_lengths} tokens, "
        f"{sizes.new_tokens} new tokens. Reference: each request alone, first start.",
        Table(
            ["engine", "requests decoded", "requests", "tokens", "flips"],
            [[c.setting, c.composition, c.requests, c.tokens, c.flips] for c in counts],
        ),
        machine=machine,
        sizes=asdict(sizes),
        counts=[asdict(count) for count in counts],
    )
