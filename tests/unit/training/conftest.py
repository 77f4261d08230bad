"""A tiny saved base and small JSONL files for the trainer's tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.models import save_tiny_base, tiny_tokenizer
from training.config import TrainConfig, parse_config

WORDS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx")
ROWS = [
    {"prompt": f"{word} ->", "completion": " " + word[::-1] * (1 + i % 3)}
    for i, word in enumerate(WORDS)
]

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than a tiny run."""
    for plot in ("plot_learning_curve", "plot_expert_load"):
        monkeypatch.setattr(f"training.run.{plot}", lambda *_: None)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def make_config(tiny_base: Path, rows_file: Path, tmp_path: Path) -> MakeConfig:
    def make(**settings: Any) -> TrainConfig:
        return parse_config(
            {
                "base": str(tiny_base),
                "data": str(rows_file),
                "output": str(tmp_path / "run"),
                "num_experts": 4,
                "top_k": 2,
                "r": 2,
                "steps": 6,
                "batch_size": 3,
                "warmup_steps": 2,
                "checkpoint_every": 2,
                "threads": 1,
                "device": "cpu",
                **settings,
            }
        )

    return make


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
