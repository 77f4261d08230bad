"""The formula of a step's memory, against what autograd keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import random_examples
from training.data import collate
from training.memory import Memory, memory_of
from training.objective import attach_method, batch_as_seen, pass_loss
from training.recompute import recompute_blocks
from training.trunk import Trunk

pytestmark = pytest.mark.usefixtures("one_thread")

FEED_FORWARD = ["gate_proj", "up_proj", "down_proj"]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
UPPER = [f"layers.{block}.mlp.{name}" for block in (2, 3) for name in FEED_FORWARD]
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
CASES: dict[str, dict[str, Any]] = {
    "feed-forward": {"target_modules": FEED_FORWARD},
    "attention": {"target_modules": ATTENTION},
    "all": {"target_modules": FEED_FORWARD + ATTENTION},
    "one linear": {"target_modules": ["down_proj"]},
    "upper blocks": {"target_modules": UPPER},
    "computed again": {"target_modules": FEED_FORWARD, "gradient_checkpointing": True},
    "packed": {"target_modules": FEED_FORWARD, "packing": True, "max_length": 64},
}


def base(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """Of unequal widths, so that no term of the formula can stand for another."""
    torch.manual_seed(2)
    shape = FAMILIES[family](
        vocab_size=500,
        hidden_size=96,
        intermediate_size=300,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=20,
    )
    return AutoModelForCausalLM.from_config(shape, dtype=dtype).eval()


def kept_and_predicted(
    config: Any, family: str, dtype: torch.dtype
) -> tuple[int, Memory, PreTrainedModel]:
    """Bytes that a pass keeps for its gradients, weights and logits left out."""
    model = base(family, dtype)
    layers = attach_method(model, config)
    if config.gradient_checkpointing:
        recompute_blocks(model)
    torch.manual_seed(3)
    batch = collate(random_examples(12))
    trunk = Trunk.of(model)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        of_logits = tensor.dim() and tensor.shape[-1] == model.config.vocab_size
        if storage.data_ptr() not in weights and not of_logits:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        draws = torch.Generator().manual_seed(1)
        loss, *_ = pass_loss(model, layers, batch, config, draws, trunk)
    predicted = memory_of(model, layers, config, batch_as_seen(batch, config))
    assert predicted is not None
    assert loss.requires_grad  # until here, or another tensor could have had a kept one's place
    return sum(kept.values()), predicted, model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_says_what_a_pass_keeps(
    make_config: MakeConfig, family: str, case: str, dtype: torch.dtype
) -> None:
    settings = {"num_experts": 6, "top_k": 3, "r": 4, "selections": 3, "batch_size": 12}
    config = make_config(**settings, **CASES[case])
    kept, predicted, model = kept_and_predicted(config, family, dtype)
    tokens = batch_as_seen_tokens(config)
    working = tokens * dtype.itemsize * 4 * model.config.intermediate_size
    found = kept
    if config.gradient_checkpointing:  # one block keeps all, when it is computed again
        plain = config.model_copy(update={"gradient_checkpointing": False})
        whole = kept_and_predicted(plain, family, dtype)[0]
        found += whole // model.config.num_hidden_layers
    # Packed, the formula leaves out the masks and the routes of rows that stand apart again.
    rounding = 0.2 if config.packing else 0.1
    assert predicted.activations - working == pytest.approx(found, rel=rounding)


def batch_as_seen_tokens(config: Any) -> int:
    torch.manual_seed(3)
    seen = batch_as_seen(collate(random_examples(12)), config)
    return seen.model_inputs()["input_ids"].numel()


def test_bases_of_other_shapes_have_no_formula(make_config: MakeConfig) -> None:
    config = make_config(target_modules="all-linear")
    shape = GPT2Config(vocab_size=500, n_embd=32, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(shape)
    batch = collate(random_examples(1))
    assert memory_of(model, {}, config, batch) is None
