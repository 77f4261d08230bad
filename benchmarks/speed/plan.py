"""What is measured: cases (workload shapes), lanes (a system and its kind of traffic), and who
runs where."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Literal

from benchmarks.shape import AdapterShape
from benchmarks.speed.systems.protocol import Workload

NUM_ADAPTERS = 4
PEERS = ("generate", "peft", "vllm", "llamacpp")


class Lane(StrEnum):
    """A column of the result: one system under one kind of traffic."""

    REMIX = "remix"
    LOADED = "remix, adapters loaded"
    MIXED = "remix, 4 adapters mixed"
    INT8 = "remix int8"
    INT8_LOADED = "remix int8, adapters loaded"
    INT8_MIXED = "remix int8, 4 adapters mixed"
    FLOAT32 = "remix float32"
    GENERATE = "generate"
    PEFT = "generate, 4 PEFT LoRAs mixed"
    VLLM = "vllm cpu"
    LLAMACPP = "llama.cpp F32"
    LLAMACPP_BF16 = "llama.cpp BF16"
    LLAMACPP_Q8 = "llama.cpp Q8_0"
    ROOFLINE = "roofline"
    ROOFLINE_FLOAT32 = "roofline float32"
    ROOFLINE_INT8 = "roofline int8"


UNLOADED_LANES = (Lane.REMIX, Lane.INT8)
"""Lanes of a process that has adapters in the lanes beside, and drops them for these."""
MIXED_LANES = (Lane.MIXED, Lane.INT8_MIXED, Lane.PEFT)
"""Lanes whose requests all use an adapter, the four in turn; the others ask the base alone."""

Prompt = Literal["short", "long"]
PROMPT_TOKENS: dict[Prompt, int] = {"short": 16, "long": 300}


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedConfig:
    """The options of the speed suite, parsed."""

    base: Path
    shape: AdapterShape
    targets: tuple[str, ...]
    batches: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    new_tokens: int
    peers: tuple[str, ...]
    sittings: int
    rounds: int
    minutes: float
    threads: int
    vllm_python: Path | None
    vllm_eager: bool
    vllm_preload: str
    """Libraries for LD_PRELOAD, separated by colons; vLLM asks for libiomp5 and tcmalloc."""

    @property
    def max_running(self) -> int:
        return max(self.batches)


@dataclass(frozen=True, slots=True)
class Case:
    """A workload shape: `batch` requests at once, `new_tokens` output tokens each."""

    batch: int
    prompt: Prompt
    new_tokens: int

    @property
    def prefill(self) -> bool:
        """Only the prompts count: one output token."""
        return self.new_tokens == 1

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all requests together."""
        return self.batch * PROMPT_TOKENS[self.prompt]

    def __str__(self) -> str:
        kind = "prefill only" if self.prefill else f"{self.new_tokens} new tokens"
        return f"{self.batch} x {self.prompt} prompt, {kind}"

    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that run this case, close relatives side by side."""
        # The speed of memory changes from one second to the next, so what is compared is near.
        adapted = self.prefill or self.prompt == "short"
        lanes: list[Lane] = []
        for base, roofline, *others in (
            (Lane.INT8, Lane.ROOFLINE_INT8, Lane.INT8_MIXED, Lane.INT8_LOADED),
            (Lane.REMIX, Lane.ROOFLINE, Lane.MIXED, Lane.LOADED),
            (Lane.FLOAT32, Lane.ROOFLINE_FLOAT32),
        ):
            lanes += [roofline] if self.batch == 1 and not self.prefill else []
            lanes += [base, *(others if adapted else ())]
        if self.prefill:
            return (*lanes, Lane.GENERATE, Lane.PEFT)
        lanes += [Lane.LLAMACPP, Lane.LLAMACPP_BF16, Lane.LLAMACPP_Q8, Lane.VLLM, Lane.GENERATE]
        return (*lanes, Lane.PEFT) if self.prompt == "short" else tuple(lanes)


def cases(batches: Sequence[int], prompts: Sequence[Prompt], new_tokens: int) -> list[Case]:
    """Cheap ones first. Prefill is measured on long prompts; eight of them show all that
    thirty-two would."""
    grid = [Case(batch, prompt, new_tokens) for batch in batches for prompt in prompts]
    if "long" in prompts:
        grid += [Case(batch, "long", 1) for batch in batches if batch <= 8]
    return sorted(grid, key=lambda case: case.prompt_tokens + case.batch * new_tokens)


def workload(case: Case, lane: Lane, vocab_size: int, seed: int) -> Workload:
    """The same prompts for all lanes of one seed, new ones for every seed, so that no system can
    reuse a prompt it has seen."""
    adapters = range(NUM_ADAPTERS) if lane in MIXED_LANES else [None]
    sizes = (case.batch, PROMPT_TOKENS[case.prompt], case.new_tokens)
    asked = random_workload(*sizes, adapters, vocab_size, f"{seed} {case!r}")
    return replace(asked, unloaded=lane in UNLOADED_LANES)


def random_workload(
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    adapters: Sequence[int | None],
    vocab_size: int,
    seed: str,
) -> Workload:
    """Prompts of random token ids; the requests take the adapters in turn."""
    rng = random.Random(seed)
    # The first ids of a vocabulary are special tokens.
    ids = range(min(64, vocab_size // 4), vocab_size)
    return Workload(
        prompts=[[rng.choice(ids) for _ in range(prompt_tokens)] for _ in range(requests)],
        new_tokens=new_tokens,
        adapters=[adapters[i % len(adapters)] for i in range(requests)],
    )
