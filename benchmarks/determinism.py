"""Counts greedy tokens that change when nothing but the company of a request changes.

A fixed set of requests, on the base and on four strong random adapters, is decoded alone by the
first engine. Then every setting decodes the same requests in batches, in several compositions.
A *flip* is a request whose output differs; how far it agreed is kept. The target is zero.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.adapters import AdapterShape, write_random_adapter
from benchmarks.lineup import empty_model
from benchmarks.machine import describe_machine
from benchmarks.measure import first_difference
from benchmarks.plan import NUM_ADAPTERS
from benchmarks.report import table, write_result
from benchmarks.systems.protocol import Workload
from benchmarks.worker import Worker, WorkerError
from remix_runtime.errors import ConfigError

TARGETS = ("gate_proj", "up_proj", "down_proj")


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
    """Of each flip, the tokens before it."""

    def add(self, output: list[int], reference: list[int]) -> None:
        same = first_difference(output, reference)
        self.requests += 1
        if same == len(reference) == len(output):
            self.tokens += same
            return
        self.tokens += same + 1
        self.flips += 1
        self.agreed.append(same)


def settings(threads: int) -> list[Setting]:
    """The reference first; then a restart, other chunk budgets, threads, slots, and a swap."""
    common = {"device": "cpu", "dtype": "float32", "threads": threads, "max_running": 32}
    found = [
        Setting("first start", common),
        Setting("restart", common),
        Setting("32 tokens per step", {**common, "max_tokens_per_step": 32}),
        Setting("1024 tokens per step", {**common, "max_tokens_per_step": 1024}),
        Setting("2 adapter slots", {**common, "adapter_slots": 2}),
        Setting("adapters swapped before every batch", common, swap=True),
    ]
    other = 1 if threads > 1 else 2
    found.append(Setting(f"{other} instead of {threads} threads", {**common, "threads": other}))
    return found


@dataclass(frozen=True, slots=True)
class Item:
    """One request that is decoded again and again."""

    prompt: list[int]
    adapter: int | None


def items(sizes: Sizes, vocab_size: int, seed: int = 0) -> list[Item]:
    """Requests of all lengths; base and adapters in turn within each length."""
    rng = random.Random(seed)
    choices = [None, *range(NUM_ADAPTERS)]
    return [
        Item([rng.randrange(vocab_size) for _ in range(length)], choices[i % len(choices)])
        for length in sizes.prompt_lengths
        for i in range(sizes.requests_per_length)
    ]


def batches(count: int, size: int, seed: int) -> Iterator[list[int]]:
    """Indices 0 to `count` in a random order, `size` at a time."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    for start in range(0, count, size):
        yield order[start : start + size]


def run_determinism(
    base: Path,
    stem: Path,
    shape: str,
    threads: int,
    report: Callable[[str], None],
    sizes: Sizes | None = None,
) -> str:
    """Counts, writes `stem`.json and .md, and returns the Markdown. Raises `ConfigError`."""
    sizes = sizes or Sizes()
    model = empty_model(base)
    wanted = items(sizes, model.config.vocab_size)
    counts: list[Count] = []
    reference: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as scratch:
        folders = [str(Path(scratch) / f"adapter-{i}") for i in range(NUM_ADAPTERS)]
        for i, folder in enumerate(folders):
            write_random_adapter(Path(folder), model, AdapterShape.parse(shape), TARGETS, seed=i)
        for setting in settings(threads):
            report(f"determinism: {setting.name}")
            worker = _start(base, setting, folders, Path(scratch) / "log")
            try:
                alone = _decode(worker, wanted, [[i] for i in range(len(wanted))], sizes)
                reference = reference or alone
                counts.append(_compare(setting.name, "alone", alone, reference))
                for size in sizes.compositions:
                    groups = list(batches(len(wanted), size, seed=len(counts)))
                    outputs = _decode(worker, wanted, groups, sizes)
                    counts.append(_compare(setting.name, f"{size} at once", outputs, reference))
            except WorkerError as error:
                raise ConfigError(f"bench: {error}") from None
            finally:
                worker.close()
            report(f"determinism: flips so far: {sum(c.flips for c in counts)}")
    return _write(stem, counts, describe_machine(), sizes, shape)


def _start(base: Path, setting: Setting, folders: list[str], log: Path) -> Worker:
    options = {
        "engine": {"model": str(base), **setting.engine},
        "adapters": folders,
        "swap": setting.swap,
    }
    target = "benchmarks.systems.embedded:EmbeddedSystem"
    try:
        return Worker(setting.name, target, options, log=log, threads=setting.engine["threads"])
    except WorkerError as error:
        raise ConfigError(f"bench: {error}") from None


def _decode(
    worker: Worker, wanted: list[Item], groups: list[list[int]], sizes: Sizes
) -> list[list[int]]:
    """Output tokens by request, decoded group by group."""
    outputs: list[list[int]] = [[] for _ in wanted]
    for group in groups:
        workload = Workload(
            prompts=[wanted[i].prompt for i in group],
            new_tokens=sizes.new_tokens,
            adapters=[wanted[i].adapter for i in group],
        )
        for i, tokens in zip(group, worker.run(workload).tokens, strict=True):
            outputs[i] = tokens
    return outputs


def _compare(
    setting: str, composition: str, outputs: list[list[int]], reference: list[list[int]]
) -> Count:
    count = Count(setting, composition)
    for output, expected in zip(outputs, reference, strict=True):
        count.add(output, expected)
    return count


def _write(
    stem: Path, counts: list[Count], machine: dict[str, Any], sizes: Sizes, shape: str
) -> str:
    flips = sum(c.flips for c in counts)
    tokens = sum(c.tokens for c in counts)
    requests = sum(c.requests for c in counts)
    rows = [
        [c.setting, c.composition, str(c.requests), str(c.tokens), str(c.flips)] for c in counts
    ]
    markdown = (
        f"# Determinism of the embedded engine, {machine['date'][:10]}\n\n"
        f"{flips} of {requests} requests flipped, {tokens} greedy tokens compared; the target is "
        f"0: {'met' if flips == 0 else f'missed by {flips}'}.\n\n"
        f"{machine['cpu']}, {machine['cores']} cores, commit {machine['commit']}; base and four "
        f"random adapters (n,k,r = {shape}), prompts of {sizes.prompt_lengths} tokens, "
        f"{sizes.new_tokens} new tokens. Reference: each request alone, first start.\n\n"
        + table(["engine", "requests decoded", "requests", "tokens", "flips"], rows)
        + "\n"
    )
    document = {
        "machine": machine,
        "sizes": asdict(sizes),
        "adapter_shape": shape,
        "flips": flips,
        "requests": requests,
        "tokens": tokens,
        "counts": [asdict(count) for count in counts],
    }
    write_result(stem, json.dumps(document, indent=1) + "\n", markdown)
    return markdown
