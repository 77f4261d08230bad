"""The committed sample adapters: whole, fit for the demo model, made by their recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from examples.make_data import STYLES
from remix_runtime.adapter.checkpoint import BaseShapes, describe, read_checkpoint, read_parity
from training.config import load_config

EXAMPLES = Path(__file__).parents[3] / "examples"
HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, HEAD_DIM, LAYERS = 576, 1536, 9, 3, 64, 30
MAX_BYTES = 3_000_000


def demo_shapes() -> BaseShapes:
    """The demo model's linears, from its configuration: the test downloads nothing."""
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        for name in ("gate_proj", "up_proj"):
            shapes[f"{at}.mlp.{name}"] = (FEED_FORWARD, HIDDEN)
        shapes[f"{at}.mlp.down_proj"] = (HIDDEN, FEED_FORWARD)
        for name, heads in (("q_proj", HEADS), ("k_proj", KV_HEADS), ("v_proj", KV_HEADS)):
            shapes[f"{at}.self_attn.{name}"] = (heads * HEAD_DIM, HIDDEN)
        shapes[f"{at}.self_attn.o_proj"] = (HIDDEN, HEADS * HEAD_DIM)
    return shapes


def test_there_is_a_sample_for_every_style() -> None:
    assert {path.parent.name for path in EXAMPLES.glob("*/adapter")} == set(STYLES)
    assert len(STYLES) >= 3


@pytest.mark.parametrize("name", sorted(STYLES))
def test_sample_fits_the_demo_model(name: str) -> None:
    folder = EXAMPLES / name / "adapter"
    checkpoint = read_checkpoint(folder, base=demo_shapes())
    assert checkpoint.config.base_model_name_or_path == "SmolLM2-135M-Instruct"
    parity = read_parity(folder)
    assert parity is not None
    assert len(parity.prompts) >= 2
    assert sum(file.stat().st_size for file in folder.iterdir()) < MAX_BYTES


@pytest.mark.parametrize("name", sorted(STYLES))
def test_sample_was_made_by_its_recipe(name: str) -> None:
    recipe = load_config(EXAMPLES / name / "recipe.yaml").adapter
    wanted = replace(recipe, target_modules=tuple(sorted(recipe.target_modules)))
    assert read_checkpoint(EXAMPLES / name / "adapter").config == wanted


@pytest.mark.parametrize("name", sorted(STYLES))
def test_readme_of_the_samples_tells_the_digest(name: str) -> None:
    digest = read_checkpoint(EXAMPLES / name / "adapter").digest
    assert digest in (EXAMPLES / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(STYLES))
def test_model_card_has_the_card_data_and_the_heldout_metric(name: str) -> None:
    card = (EXAMPLES / name / "adapter" / "README.md").read_text(encoding="utf-8")
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["base_model"] == "SmolLM2-135M-Instruct"
    assert "held-out loss" in text
    assert "exact match" in text


def test_samples_differ_in_n_k_and_r() -> None:
    """One batch of all samples exercises mixed shapes."""
    facts = [describe(read_checkpoint(EXAMPLES / name / "adapter")) for name in STYLES]
    for values in ({f.num_experts for f in facts}, {f.top_k for f in facts}, {f.r for f in facts}):
        assert len(values) > 1
