"""What is whole loads, and has the weights of its files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MixtralConfig

from remix_runtime.base.folder import find_base
from remix_runtime.base.model import check_base, load_model
from remix_runtime.base.tokenizer import load_tokenizer
from remix_runtime.errors import ConfigError
from tests.models import FAMILIES, VOCAB_SIZE, save_tiny_base, tiny_config, tiny_model
from tests.wrong_bases import WEIGHTS, config, fields, sharded, template

IDS = torch.arange(20).reshape(1, -1)


def logits(folder: Path) -> torch.Tensor:
    assert check_base(str(folder)) == folder
    with torch.no_grad():
        return load_model(str(folder))(IDS).logits


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_families(tmp_path: Path, family: str) -> None:
    save_tiny_base(tmp_path, family, seed=3)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), tiny_model(family, seed=3)(IDS).logits)
    assert len(load_tokenizer(str(tmp_path))) == VOCAB_SIZE


@pytest.mark.parametrize("stores_head", [False, True])
def test_tied_embeddings(tmp_path: Path, stores_head: bool) -> None:
    """A tied head is not missing; one that is stored beside the embedding is not one too many."""
    tied = tiny_config("llama")
    tied.tie_word_embeddings = True
    model = AutoModelForCausalLM.from_config(tied).eval()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    assert "lm_head.weight" not in tensors
    if stores_head:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, tmp_path / WEIGHTS, metadata={"format": "pt"})
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), model(IDS).logits)


def test_experts_that_files_name_otherwise(tmp_path: Path) -> None:
    """transformers merges the tensors of Mixtral's experts into others: none is missing."""
    moe = MixtralConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
    )
    model = AutoModelForCausalLM.from_config(moe).eval()
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(logits(tmp_path), model(IDS).logits)


def test_shards(base: Path) -> None:
    whole = logits(base)
    sharded(base)
    assert torch.equal(logits(base), whole)


def test_files_that_are_links(base: Path, tmp_path: Path) -> None:
    """As in the Hugging Face cache."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for file in base.iterdir():
        (linked / file.name).symlink_to(file)
    assert torch.equal(logits(linked), logits(base))


def test_tensors_that_transformers_says_are_computed(base: Path) -> None:
    """Older checkpoints hold the rope's frequencies."""
    whole = logits(base)
    tensors = load_file(base / WEIGHTS)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(12)
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    assert torch.equal(logits(base), whole)


def test_an_embedding_of_more_rows_than_tokens(base: Path) -> None:
    tensors = load_file(base / WEIGHTS)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        tensors[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, 11))
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    config(vocab_size=VOCAB_SIZE + 11)(base)
    assert logits(base).shape[-1] == VOCAB_SIZE + 11
    load_tokenizer(str(base))


def test_a_placeholder_for_images_needs_no_row(base: Path) -> None:
    """As in Gemma 3 1B, whose tokenizer is that of the models that see."""
    fields("tokenizer_config.json", extra_special_tokens={"image_token": "<image>"})(base)
    assert load_tokenizer(str(base)).convert_tokens_to_ids("<image>") == VOCAB_SIZE


def test_code_of_a_known_type_is_left_alone(base: Path) -> None:
    """transformers has its own for it."""
    config(auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})(base)
    (base / "evil.py").write_text("raise SystemExit('this ran')")
    assert logits(base).shape[-1] == VOCAB_SIZE


def test_a_template_may_refuse_a_message(base: Path) -> None:
    template("{{ raise_exception('a system message first, please') }}")(base)
    load_tokenizer(str(base))


def test_an_id_of_the_local_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / "0123456789abcdef"
    shutil.copytree(base, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    assert find_base("some/model") == snapshot
    load_tokenizer("some/model")
    (snapshot / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfigError, match=r"found adapter_config\.json beside config\.json"):
        load_model("some/model")
