"""A small base, adapters of different shapes for it, and what each must answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from tests.models import ATTENTION, MLP, random_checkpoint, save_tiny_base, tiny_model
from tests.reference import greedy, with_adapter

FAMILY = "llama-32"
SHAPES = ((8, 4, 8, MLP), (4, 1, 3, (*MLP, *ATTENTION)), (5, 2, 4, ("down_proj", "q_proj")))


@dataclass(frozen=True)
class Adapter:
    folder: Path
    model: PreTrainedModel
    """The base with the adapter: the readable truth."""

    def answer(self, prompt: list[int], new_tokens: int) -> list[int]:
        return greedy(self.model, prompt, new_tokens)


@dataclass
class World:
    base: Path
    model: PreTrainedModel
    remix: list[Adapter] = field(default_factory=list)
    lora: list[Adapter] = field(default_factory=list)
    """Plain ones, as PEFT writes them."""

    @property
    def adapters(self) -> list[Adapter]:
        return [*self.remix, *self.lora]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("vllm")
    world = World(save_tiny_base(root / "base", FAMILY), tiny_model(FAMILY))
    for seed, (n, k, r, targets) in enumerate(SHAPES):
        world.remix.append(
            remix_adapter(root / f"remix-{seed}", n=n, k=k, r=r, target_modules=targets, seed=seed)
        )
    world.lora.append(lora_adapter(root / "lora"))
    return world


def remix_adapter(folder: Path, **shape: object) -> Adapter:
    checkpoint = random_checkpoint(tiny_model(FAMILY), **shape)  # type: ignore[arg-type]
    write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="random")
    model = tiny_model(FAMILY)
    with_adapter(model, read_checkpoint(folder))
    return Adapter(folder, model)


def lora_adapter(folder: Path) -> Adapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        config = LoraConfig(r=4, lora_alpha=24, target_modules=list(MLP), init_lora_weights=False)
        model = get_peft_model(tiny_model(FAMILY), config)
    model.save_pretrained(folder)
    merged: PreTrainedModel = model.merge_and_unload()
    return Adapter(folder, merged.eval())


@pytest.fixture
def prompt() -> Callable[[int], list[int]]:
    """Fresh random token ids of a length."""
    return lambda length: torch.randint(0, 256, (length,)).tolist()
