"""What is measured: cases (workload shapes), lanes (a system and its kind of traffic), and who
runs where."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from benchmarks.systems.protocol import Workload

NUM_ADAPTERS = 4


class Lane(StrEnum):
    """A column of the result: one system under one kind of traffic."""

    REMIX = "remix"
    LOADED = "remix, adapters loaded"
    MIXED = "remix, 4 adapters mixed"
    GENERATE = "generate"
    PEFT = "generate, 4 PEFT LoRAs mixed"
    VLLM = "vllm cpu"
    LLAMACPP = "llama.cpp F32"
    ROOFLINE = "roofline"


MIXED_LANES = (Lane.MIXED, Lane.PEFT)
"""Lanes whose requests all use an adapter, the four in turn; the others ask the base alone."""

Prompt = Literal["short", "long"]
PROMPT_TOKENS: dict[Prompt, int] = {"short": 16, "long": 300}


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
    def name(self) -> str:
        kind = "prefill only" if self.prefill else f"{self.new_tokens} new tokens"
        return f"{self.batch} x {self.prompt} prompt, {kind}"

    def lanes(self) -> tuple[Lane, ...]:
        """The lanes that run this case, close relatives side by side."""
        if self.prefill:
            return (Lane.LOADED, Lane.MIXED, Lane.REMIX, Lane.GENERATE, Lane.PEFT)
        peers = (Lane.REMIX, Lane.GENERATE, Lane.VLLM, Lane.LLAMACPP)
        roofline = (Lane.ROOFLINE,) if self.batch == 1 else ()
        if self.prompt == "short":
            return (Lane.LOADED, Lane.MIXED, *peers, Lane.PEFT, *roofline)
        return (*peers, *roofline)


def cases(batches: Sequence[int], prompts: Sequence[Prompt], new_tokens: int) -> list[Case]:
    """Cheap ones first. Prefill is measured on long prompts; eight of them show all that
    thirty-two would."""
    grid = [Case(batch, prompt, new_tokens) for batch in batches for prompt in prompts]
    if "long" in prompts:
        grid += [Case(batch, "long", 1) for batch in batches if batch <= 8]
    return sorted(grid, key=lambda case: case.batch * (PROMPT_TOKENS[case.prompt] + new_tokens))


def workload(case: Case, lane: Lane, vocab_size: int, seed: int) -> Workload:
    """Random token ids: the same for all lanes of one seed, new for every seed, so that no
    system can reuse a prompt it has seen."""
    rng = random.Random(f"{seed} {case}")
    # The first ids of a vocabulary are special tokens.
    low = min(64, vocab_size // 4)
    length = PROMPT_TOKENS[case.prompt]
    prompts = [[rng.randrange(low, vocab_size) for _ in range(length)] for _ in range(case.batch)]
    mixed = lane in MIXED_LANES
    adapters = [i % NUM_ADAPTERS if mixed else None for i in range(case.batch)]
    return Workload(prompts=prompts, new_tokens=case.new_tokens, adapters=adapters)


def rotations(lanes: Sequence[Lane], round_index: int) -> Iterator[Lane]:
    """The lanes in turn, beginning one further each round, so that none is always first."""
    start = round_index % len(lanes)
    yield from (*lanes[start:], *lanes[:start])
