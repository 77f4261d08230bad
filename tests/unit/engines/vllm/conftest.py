"""A tiny base and adapters for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.models import random_checkpoint, save_tiny_base, tiny_model


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"), "llama-32")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root, model = tmp_path_factory.mktemp("adapters"), tiny_model("llama-32")
    for seed in range(4):
        made = random_checkpoint(model, n=2, k=1, r=2, target_modules=("down_proj",), seed=seed)
        write_checkpoint(root / f"{seed}", made.config, made.layers, readme="random")
    return [root / f"{seed}" for seed in range(4)]
