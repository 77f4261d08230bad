"""PEFT's own API, unmodified, on ReMix adapters; `layers.RemixLinear` is the truth."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import (
    AutoPeftModelForCausalLM,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    PeftType,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from remix_runtime.adapter.checkpoint import read_checkpoint, routing_weight, write_checkpoint
from remix_runtime.adapter.checkpoint.config import parse_config
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.errors import ConfigError
from remix_runtime.interop import peft as interop
from remix_runtime.interop.peft import RemixConfig, RemixLayer
from tests.models import (
    ATTENTION,
    FAMILIES,
    MLP,
    VOCAB_SIZE,
    random_checkpoint,
    save_tiny_base,
    tiny_model,
)

# PEFT 0.21 reads a name that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPT = torch.tensor([[5, 250, 17, 99, 3, 41, 200, 7]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_tiny_base(tmp_path / "base")


def load_base(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def written(folder: Path, model: PreTrainedModel, *, base: Path | None = None, **choice) -> Path:
    checkpoint = random_checkpoint(model, **choice)
    config = replace(checkpoint.config, base_model_name_or_path=str(base or ""))
    write_checkpoint(folder, config, checkpoint.layers, readme="# test\n")
    return folder


def truth(model: PreTrainedModel, adapter: Path) -> torch.Tensor:
    attach_checkpoint(model, read_checkpoint(adapter, base=base_shapes(model)))
    with torch.no_grad():
        return model(PROMPT).logits


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=PROMPT).logits


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "k", "r", "targets"), [(4, 2, 4, MLP), (5, 3, 2, ATTENTION)])
def test_our_checkpoint_through_peft_equals_remix_linear(tmp_path, family, n, k, r, targets):
    adapter = written(
        tmp_path / "a", tiny_model(family), n=n, k=k, r=r, target_modules=targets, seed=n
    )
    peft_model = PeftModel.from_pretrained(tiny_model(family), adapter)
    found = logits(peft_model)
    assert torch.equal(found, truth(tiny_model(family), adapter))
    assert (found - logits(tiny_model(family))).abs().max() > 0.1


def test_peft_round_trip_keeps_every_bit_and_the_digest(tmp_path, base):
    adapter = written(tmp_path / "a", load_base(base), base=base, seed=3)
    peft_model = PeftModel.from_pretrained(load_base(base), adapter)
    peft_model.save_pretrained(tmp_path / "b")
    first = read_checkpoint(adapter)
    second = read_checkpoint(tmp_path / "b", base=base_shapes(load_base(base)))
    for name, layer in first.layers.items():
        assert torch.equal(layer.a_nrD, second.layers[name].a_nrD)
        assert torch.equal(layer.b_nOr, second.layers[name].b_nOr)
        assert torch.equal(layer.router_nD, second.layers[name].router_nD)
    assert second.config == first.config
    assert second.digest == first.digest


def test_adapter_made_in_peft_is_a_checkpoint_of_ours(tmp_path, base):
    config = RemixConfig(num_experts=3, top_k=2, r=4)
    peft_model = get_peft_model(load_base(base), config)
    assert isinstance(peft_model, PeftModelForCausalLM)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "remix_B" in name:
                parameter.normal_()
    peft_model.save_pretrained(tmp_path / "a")
    checkpoint = read_checkpoint(tmp_path / "a", base=base_shapes(load_base(base)))
    assert checkpoint.config.target_modules == tuple(sorted(MLP))
    assert checkpoint.config.routing_weight == routing_weight("rslora", top_k=2, r=4)
    assert checkpoint.config.base_model_name_or_path == str(base)
    assert torch.equal(logits(peft_model), truth(load_base(base), tmp_path / "a"))


@pytest.mark.parametrize("revision", [None, "main", "0" * 40])
@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("named", [True, False])
def test_whatever_peft_saves_is_read_and_keeps_its_digest(
    tmp_path, base, revision, inference_mode, named
):
    config = RemixConfig(
        num_experts=3, top_k=2, r=2, revision=revision, inference_mode=inference_mode
    )
    model = load_base(base) if named else tiny_model("llama")
    if not named:
        model.name_or_path = None
    peft_model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "remix_B" in name:
                parameter.normal_()
    peft_model.save_pretrained(tmp_path / "a")
    first = read_checkpoint(tmp_path / "a")
    assert first.config.revision == revision
    again = PeftModel.from_pretrained(load_base(base), tmp_path / "a", is_trainable=True)
    again.save_pretrained(tmp_path / "b")
    second = read_checkpoint(tmp_path / "b")
    assert second.config.revision == revision
    for name, layer in first.layers.items():
        assert torch.equal(layer.b_nOr, second.layers[name].b_nOr)
    # PEFT writes the base that it was given into the folder, the rest stays as it was.
    renamed = replace(second.config, base_model_name_or_path=first.config.base_model_name_or_path)
    assert renamed == first.config


def test_get_peft_model_takes_a_revision(tmp_path):
    peft_model = get_peft_model(tiny_model("llama"), RemixConfig(), revision="v2")
    peft_model.peft_config["default"].save_pretrained(tmp_path)
    config = peft_model.peft_config["default"].adapter_config()
    assert parse_config((tmp_path / "adapter_config.json").read_bytes()) == config
    assert config.revision == "v2"


def test_fields_of_a_newer_peft_are_read_by_both(tmp_path, base):
    adapter = written(tmp_path / "a", load_base(base), base=base)
    before = read_checkpoint(adapter)
    path = adapter / "adapter_config.json"
    fields = {**json.loads(path.read_text()), "peft_version": "0.99.0", "a_new_trick": None}
    path.write_text(json.dumps(fields))
    assert read_checkpoint(adapter).digest == before.digest
    with pytest.warns(UserWarning, match="a_new_trick"):
        peft_model = PeftModel.from_pretrained(load_base(base), adapter)
    assert torch.equal(logits(peft_model), truth(load_base(base), adapter))


def test_auto_peft_model_finds_the_base(tmp_path, base):
    adapter = written(tmp_path / "a", load_base(base), base=base)
    peft_model = AutoPeftModelForCausalLM.from_pretrained(adapter)
    assert torch.equal(logits(peft_model), truth(load_base(base), adapter))


def test_transformers_load_adapter_and_save(tmp_path, base):
    adapter = written(tmp_path / "a", load_base(base), base=base)
    model = load_base(base)
    plain = logits(model)
    model.load_adapter(str(adapter))
    assert torch.equal(logits(model), truth(load_base(base), adapter))
    model.save_pretrained(tmp_path / "b")
    assert read_checkpoint(tmp_path / "b").digest == read_checkpoint(adapter).digest
    model.disable_adapters()
    assert torch.equal(logits(model), plain)


def test_low_memory_loading_into_bfloat16_keeps_float32_weights(tmp_path):
    adapter = written(tmp_path / "a", tiny_model("llama"))
    model = PeftModel.from_pretrained(
        tiny_model("llama").bfloat16(), adapter, low_cpu_mem_usage=True
    )
    model.save_pretrained(tmp_path / "b")
    assert read_checkpoint(tmp_path / "b").digest == read_checkpoint(adapter).digest
    expected = truth(tiny_model("llama").bfloat16(), adapter)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_that_is_cast_with_its_adapter_still_computes(tmp_path, dtype):
    adapter = written(tmp_path / "a", tiny_model("llama"), seed=3)
    exact = logits(PeftModel.from_pretrained(tiny_model("llama"), adapter))
    cast = logits(PeftModel.from_pretrained(tiny_model("llama"), adapter).to(dtype))
    plain = logits(tiny_model("llama").to(dtype))
    assert cast.dtype == dtype
    assert (cast - exact).abs().mean() < 0.2 * (plain - exact).abs().mean()


def test_adapters_switch_add_up_and_go(tmp_path):
    model = tiny_model("qwen3")
    one = written(tmp_path / "one", model, seed=1)
    two = written(tmp_path / "two", model, seed=2, n=3, k=1, r=2)
    peft_model = PeftModel.from_pretrained(tiny_model("qwen3"), one, adapter_name="one")
    peft_model.load_adapter(two, adapter_name="two")
    assert torch.equal(logits(peft_model), truth(tiny_model("qwen3"), one))
    peft_model.set_adapter("two")
    assert torch.equal(logits(peft_model), truth(tiny_model("qwen3"), two))
    with peft_model.disable_adapter():
        assert torch.equal(logits(peft_model), logits(tiny_model("qwen3")))
    peft_model.set_adapter("one")
    peft_model.delete_adapter("two")
    assert torch.equal(logits(peft_model), truth(tiny_model("qwen3"), one))
    unloaded = peft_model.unload()
    assert torch.equal(logits(unloaded), logits(tiny_model("qwen3")))


def test_two_active_adapters_add_their_mixtures():
    linear = torch.nn.Linear(8, 6)
    layer = RemixLayer(linear, "one", RemixConfig(num_experts=2, top_k=1, r=2))
    layer.update_layer("two", RemixConfig(num_experts=4, top_k=3, r=1))
    with torch.no_grad():
        for name in ("one", "two"):
            layer.remix_B[name].weight.normal_()
        x = torch.randn(5, 8)
        plain, outputs = linear(x), {}
        for name in ("one", "two"):
            layer.set_adapter(name)
            outputs[name] = layer(x) - plain
            assert outputs[name].abs().max() > 0.1
        layer.set_adapter(["one", "two"])
        torch.testing.assert_close(layer(x), plain + outputs["one"] + outputs["two"])


def test_training_through_peft_reaches_experts_and_not_the_router(base):
    peft_model = get_peft_model(load_base(base), RemixConfig(num_experts=3, top_k=2, r=4)).train()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "remix_B" in name:
                parameter.normal_()
    tokens = torch.randint(0, VOCAB_SIZE, (2, 20), generator=torch.Generator().manual_seed(0))
    loss = peft_model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    for name, parameter in peft_model.named_parameters():
        if "remix_A" in name or "remix_B" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
    optimizer = torch.optim.SGD([p for p in peft_model.parameters() if p.grad is not None], lr=1e-2)
    optimizer.step()
    assert peft_model(input_ids=tokens, labels=tokens).loss < loss


def test_merging_is_refused_with_a_reason(tmp_path):
    model = tiny_model("llama")
    peft_model = PeftModel.from_pretrained(model, written(tmp_path / "a", tiny_model("llama")))
    before = logits(peft_model)
    for merge in (peft_model.merge_and_unload, peft_model.merge_adapter):
        with pytest.raises(ConfigError, match="every token chooses its own experts"):
            merge()
    assert torch.equal(logits(peft_model), before)


def test_mixed_batch_is_refused_instead_of_ignored(tmp_path):
    adapter = written(tmp_path / "a", tiny_model("llama"))
    peft_model = PeftModel.from_pretrained(tiny_model("llama"), adapter)
    with pytest.raises(ConfigError, match="adapter_names"):
        peft_model(input_ids=PROMPT, adapter_names=["default"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 9),
        ("top_k", 0),
        ("num_experts", 0),
        ("num_experts", True),
        ("r", -1),
        ("r", 2.5),
        ("routing_weight", float("nan")),
        ("routing_weight", 0.0),
        ("format_version", 2),
        ("target_modules", "all-linear"),
        ("target_modules", ["mlp/.*"]),
        ("task_type", "SEQ_CLS"),
        ("revision", 3),
        ("revision", "a\nb"),
    ],
)
def test_config_refuses_what_a_checkpoint_cannot_hold(field, value):
    with pytest.raises(ConfigError, match=f"{field}|NaN"):
        RemixConfig(**{field: value})


def test_only_linears_can_be_targets():
    with pytest.raises(ConfigError, match="embed_tokens"):
        get_peft_model(tiny_model("llama"), RemixConfig(target_modules=["embed_tokens"]))


def test_config_file_is_canonical_and_loads_back(tmp_path):
    config = RemixConfig(num_experts=4, top_k=2, r=2, target_modules={"up_proj", "down_proj"})
    config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["peft_type"] == "REMIX"
    assert fields["target_modules"] == ["down_proj", "up_proj"]
    assert fields["base_model_name_or_path"] == ""
    assert PeftConfig.from_pretrained(tmp_path).adapter_config() == config.adapter_config()


def test_registration_is_idempotent():
    member = PeftType.REMIX
    importlib.reload(interop)
    assert PeftType("REMIX") is member
    assert PeftType["REMIX"] is member
    assert list(PeftType).count("REMIX") == 1
    assert PeftType.LORA in list(PeftType)
