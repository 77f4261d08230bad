"""The quality experiment's own parts: its data, its shortcut, its verdicts."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.quality import experiment
from benchmarks.quality.experiment import (
    EXPERT_RATES,
    FIRST_ROUTER_RATE,
    METHODS,
    OTHER_ROUTER_RATES,
    PARTS,
    keep_upper_layers,
)
from benchmarks.quality.report import LABELS, OURS, verdicts, write_report
from benchmarks.quality.skills import SKILLS, write_mixed_skills
from remix_runtime.adapter.layers import base_shapes
from tests.models import tiny_model
from training.data import collate, read_examples
from training.held_out import held_out_losses


def test_the_model_without_its_lower_layers_gives_the_same_losses(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    files = write_mixed_skills(tmp_path, parts={"train": 3}, seed=0)
    examples, _ = read_examples(files["train"], tokenizer, max_length=200)
    whole, cut = tiny_model("llama"), tiny_model("llama")
    keep_upper_layers(cut, 1).remember(examples)
    # Only what is left can be adapted.
    assert len(base_shapes(cut)) == len(base_shapes(whole)) / 2
    expected = torch.tensor(held_out_losses(whole, examples, batch_size=4))
    found = torch.tensor(held_out_losses(cut, examples, batch_size=4))
    torch.testing.assert_close(found, expected)
    short = collate(examples[:1])
    torch.testing.assert_close(
        cut(input_ids=short.inputs_BT, use_cache=False).logits,
        whole(input_ids=short.inputs_BT, use_cache=False).logits,
    )


def test_no_prompt_is_in_two_parts(tmp_path: Path) -> None:
    files = write_mixed_skills(tmp_path, parts=PARTS, seed=0)
    prompts = {}
    for part, path in files.items():
        prompts[part] = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
        tags = Counter(prompt.partition(":")[0] for prompt in prompts[part])
        assert set(tags.values()) == {PARTS[part]}
        assert len(tags) == len(SKILLS)
    everything = [prompt for part in prompts.values() for prompt in part]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize("expert", EXPERT_RATES)
@pytest.mark.parametrize("router", [FIRST_ROUTER_RATE, *OTHER_ROUTER_RATES])
def test_rates_are_those_of_the_lowest_development_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expert: float, router: float
) -> None:
    best = {"expert_learning_rate": expert, "router_learning_rate": router}

    def loss(task: object, work: Path, method: str, rates: dict[str, float]) -> float:
        return sum(abs(math.log(rate / best[name])) for name, rate in rates.items())

    monkeypatch.setattr(experiment, "development_loss", loss)
    rates = experiment.tuned_rates(None, tmp_path)  # type: ignore[arg-type]
    assert rates.keys() == METHODS.keys()
    assert rates["lora"] == rates["random routing"] == {"expert_learning_rate": expert}
    assert rates["remix causal"] == rates["remix sequence"] == rates["softmax"] == best


def test_verdicts_say_who_won() -> None:
    losses = {key: [1.0, 1.2] for key in LABELS}
    losses[OURS] = [0.9, 1.1]
    losses["lora", "top-k"] = [0.8, 1.0]
    losses["softmax", "top-k"] = [0.8, 1.2]
    lines = verdicts(losses)
    assert len(lines) == len(LABELS) - 1
    text = {word: [x for x in lines if f"**{word}" in x] for word in ("better", "worse", "undec")}
    assert [len(found) for found in text.values()] == [len(LABELS) - 3, 1, 1]
    assert "plain LoRA" in text["worse"][0]
    assert "-0.1000, lower loss on 0 of 2 seeds" in text["worse"][0]
    assert "softmax" in text["undec"][0]


def test_the_report_holds_every_method_and_its_plot(tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        for method in dict.fromkeys(method for method, _ in LABELS):
            rows = [
                {"step": s, "loss": 1.5 / s, "effective_support_size": 2.0, "held_out_loss": 1.0}
                for s in range(1, 5)
            ]
            runs.append(
                {
                    "method": method,
                    "seed": seed,
                    "rates": {"expert_learning_rate": 0.003},
                    "held_out": {"top-k": 1.23 + seed, "sampled": 1.5},
                    "by_skill": {"upper": 0.5},
                    "rows": rows,
                    "seconds": 3.0,
                }
            )
    setting = {
        "threads": 1, "steps": 4, "batch_size": 2, "selections": 2, "layers": 1, "seeds": [0, 1],
        "base_title": "Tiny", "num_experts": 4, "top_k": 2, "r": 2, "name": "tiny",
        "targets": ["down_proj"],
    }  # fmt: skip
    write_report(runs, base_loss=9.87, setting=setting, folder=tmp_path)
    text = (tmp_path / "tiny.md").read_text()
    for label in LABELS.values():
        assert f"| {label} |" in text
    assert "1.7300 ± 0.7071 | 1.230 / 2.230" in text
    assert "held-out loss of 9.8700" in text
    assert "--name tiny --steps 4 " in text
    assert "- lora: expert_learning_rate 0.003" in text
    assert (tmp_path / "tiny.png").stat().st_size > 10_000
