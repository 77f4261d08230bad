"""The quality experiment's own parts: its data, its shortcut, its verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from benchmarks.quality import keep_upper_layers
from benchmarks.quality_report import LABELS, OURS, verdicts, write_report
from benchmarks.quality_skills import SKILLS, write_mixed_skills
from remix_runtime.layers import base_shapes
from tests.models import tiny_model
from training.data import collate, read_examples
from training.evaluation import held_out_losses


def test_the_model_without_its_lower_layers_gives_the_same_losses(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    train, _ = write_mixed_skills(tmp_path, train=3, held_out=1, seed=0)
    examples, _ = read_examples(train, tokenizer, max_length=200)
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


def test_no_prompt_is_trained_on_and_held_out(tmp_path: Path) -> None:
    files = write_mixed_skills(tmp_path, train=40, held_out=8, seed=0)
    train, held_out = ([json.loads(x) for x in f.read_text().splitlines()] for f in files)
    assert (len(train), len(held_out)) == (40 * len(SKILLS), 8 * len(SKILLS))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    tags = [{row["prompt"].partition(":")[0] for row in rows} for rows in (train, held_out)]
    assert len(tags[0]) == len(SKILLS)
    assert tags[0] == tags[1]


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
                    "settings": {"expert_learning_rate": 0.003, "steps": 4},
                    "held_out": {"top-k": 1.23 + seed, "sampled": 1.5},
                    "by_skill": {"upper": 0.5},
                    "rows": rows,
                    "seconds": 3.0,
                }
            )
    setting = {
        "threads": 1, "steps": 4, "batch_size": 2, "selections": 2, "layers": 1, "seeds": [0, 1],
        "base_title": "Tiny", "num_experts": 4, "top_k": 2, "r": 2,
    }  # fmt: skip
    write_report(runs, base_loss=9.87, setting=setting, folder=tmp_path)
    text = (tmp_path / "quality.md").read_text()
    for label in LABELS.values():
        assert f"| {label} |" in text
    assert "1.7300 ± 0.7071 | 1.230 / 2.230" in text
    assert "held-out loss of 9.8700" in text
    assert (tmp_path / "quality.png").stat().st_size > 10_000
