"""ReMix in transformers' `Trainer`: the gradients of `remix train`, and a trained adapter at the
end."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.layers import RemixLinear
from remix_runtime.errors import ConfigError, DataError
from remix_runtime.interop.peft import RemixConfig
from tests.models import tiny_model
from tests.unit.training.conftest import MakeConfig
from tests.unit.training.passes import gradients, random_examples
from training.config import TrainConfig
from training.data import collate, read_examples
from training.encoding import Example
from training.held_out import held_out_loss
from training.losses import IGNORED
from training.mixin import RemixTrainerMixin, remix_optimizer
from training.objective import attach_method, pass_loss
from training.ranks import ALONE
from training.seeds import generator
from training.trainer import Trainer as OurTrainer
from training.trunk import Trunk

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # in PEFT
]

PARTS = {"a_nrD": "remix_A", "b_nOr": "remix_B", "router_nD": "remix_router"}
UPPER = ["layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]


class RemixTrainer(RemixTrainerMixin, Trainer):  # type: ignore[misc]
    """What a user writes. It notes the batches of its passes."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.batches = [*getattr(self, "batches", []), inputs]
        return super().compute_loss(model, inputs, *args, **kwargs)


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Tensor]:
    """As the collators of transformers do it."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": IGNORED, "attention_mask": 0}
    return {
        key: torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])
        for key, value in fill.items()
    }


def as_rows(examples: list[Example]) -> list[dict[str, list[int]]]:
    return [
        {
            "input_ids": list(example.tokens),
            "labels": [
                token if learned else IGNORED
                for token, learned in zip(example.tokens, example.is_target, strict=True)
            ],
            "attention_mask": [1] * len(example.tokens),
        }
        for example in examples
    ]


def as_examples(batch: dict[str, Tensor]) -> list[Example]:
    """The rows of a batch, in its order."""
    examples = []
    for ids_T, labels_T, mask_T in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        target = (labels_T != IGNORED)[mask_T].tolist()
        examples.append(
            Example(tokens=tuple(ids_T[mask_T].tolist()), is_target=tuple(target), prompt_length=1)
        )
    return examples


def peft_model(config: TrainConfig) -> PeftModel:
    torch.manual_seed(11)
    settings = config.adapter
    model = get_peft_model(
        tiny_model("llama"),
        RemixConfig(
            num_experts=settings.num_experts,
            top_k=settings.top_k,
            r=settings.r,
            target_modules=list(settings.target_modules),
        ),
    )
    for name, parameter in model.named_parameters():
        if "remix_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def make_trainer(
    model: PeftModel, examples: list[Example], folder: Path, **settings: Any
) -> RemixTrainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0.0,
        **{"max_steps": 1, "per_device_train_batch_size": len(examples), "seed": 3, **settings},
    )
    optimizer = remix_optimizer(model, padded(as_rows(examples)), expert_learning_rate=3e-2)
    return RemixTrainer(
        model,
        arguments,
        train_dataset=as_rows(examples),
        eval_dataset=as_rows(examples),
        data_collator=padded,
        optimizers=(optimizer, None),
    )


def trainers_gradients(trainer: RemixTrainer) -> dict[str, Tensor]:
    """The gradients of its first step, by our names."""
    found: dict[str, Tensor] = {}

    def note(*_: object) -> None:
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None and name not in found:
                found[name] = parameter.grad.clone()

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    return found


@pytest.mark.parametrize("credit", ["causal", "sequence"])
@pytest.mark.parametrize("targets", [["up_proj", "down_proj"], UPPER], ids=["all", "upper"])
@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_a_step_has_the_gradients_of_ours(
    make_config: MakeConfig,
    tmp_path: Path,
    targets: list[str],
    credit: Any,
    passes: int,
    again: bool,
) -> None:
    config = make_config(target_modules=targets, credit=credit, selections=3)
    torch.manual_seed(5)
    examples = random_examples(4)
    model = peft_model(config)
    trainer = make_trainer(
        model,
        examples,
        tmp_path,
        per_device_train_batch_size=4 // passes,
        gradient_accumulation_steps=passes,
        activation_checkpointing=again,
    )
    trainer.selections, trainer.credit = 3, credit
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = trainers_gradients(trainer)
    block = model.get_base_model().model.layers[1]
    assert isinstance(block.forward, functools.partial) is again

    ours = tiny_model("llama")
    layers = attach_method(ours, config)
    names = {
        (name, part): f"base_model.model.{name}.{PARTS[part]}.default.weight"
        for name in layers
        for part in PARTS
    }
    with torch.no_grad():
        for (name, part), theirs in names.items():
            getattr(layers[name], part).copy_(before[theirs])
    for index, batch in enumerate(trainer.batches):
        draws = generator(3, "selections", index)
        rows = collate(as_examples(batch))
        loss, *_ = pass_loss(ours, layers, rows, config, draws, Trunk.of(ours))
        (loss / passes).backward()
    assert len(trainer.batches) == passes
    expected = gradients(layers)
    assert found.keys() == set(names.values())
    for (name, part), theirs in names.items():
        gradient = expected[f"{name}.{part}"]
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[theirs], gradient, rtol=1e-6, atol=1e-8, msg=theirs)


def test_routers_have_the_rates_of_remix_train(make_config: MakeConfig) -> None:
    config = make_config(router_logits_per_step=0.2, batch_size=4)
    torch.manual_seed(5)
    examples = random_examples(4)
    model = peft_model(config)
    for name, parameter in model.named_parameters():
        if "remix_B" in name:  # as both begin
            torch.nn.init.zeros_(parameter)
    optimizer = remix_optimizer(
        model, padded(as_rows(examples)), expert_learning_rate=7e-3, router_logits_per_step=0.2
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    ours = OurTrainer(config, tiny_model("llama"), examples)
    ours.train_step()
    sizes = ours._sizes.settle(ALONE).tolist()
    for name, size in zip(ours.layers, sizes, strict=True):
        router = f"base_model.model.{name}.{PARTS['router_nD']}.default.weight"
        assert rates.pop(router) == pytest.approx(0.2 / size, rel=1e-5), name
    assert set(rates.values()) == {7e-3}


def test_it_learns_evaluates_and_writes_an_adapter(
    make_config: MakeConfig, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = make_config()
    examples, _ = read_examples(config.data, tokenizer, max_length=64)
    model = peft_model(config)
    routers = {n: p.detach().clone() for n, p in model.named_parameters() if "router" in n}
    trainer = make_trainer(
        model, list(examples), tmp_path, max_steps=30, per_device_train_batch_size=6,
        logging_steps=10, activation_checkpointing=True,
    )  # fmt: skip
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    after = trainer.evaluate()["eval_loss"]
    assert after < 0.6 * before
    assert after == pytest.approx(held_out_loss(model.get_base_model(), examples), rel=1e-4)
    assert all(not torch.equal(p, routers[n]) for n, p in model.named_parameters() if n in routers)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(0 < entry["routing_entropy"] <= torch.tensor(4.0).log() for entry in logged)
    assert all(entry["routing_support"] == pytest.approx(2) for entry in logged)
    trainer.save_model(str(tmp_path / "adapter"))
    assert read_checkpoint(tmp_path / "adapter").config.num_experts == 4


def test_what_it_cannot_train_is_refused_by_name(make_config: MakeConfig, tmp_path: Path) -> None:
    examples = random_examples(2)
    model = peft_model(make_config())
    trainer = make_trainer(model, examples, tmp_path)
    trainer.selections = 1
    with pytest.raises(ConfigError, match="selections: found 1, expected at least 2"):
        trainer.train()
    plain = tiny_model("llama")
    trainer = RemixTrainer(
        plain, trainer.args, train_dataset=as_rows(examples), data_collator=padded
    )
    with pytest.raises(ConfigError, match="model: found no ReMix layer"):
        trainer.train()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (lambda b: {**b, "position_ids": b["input_ids"]}, ConfigError, "position_ids: found in a"),
        (lambda b: {k: v.flip(1) for k, v in b.items()}, ConfigError, "padding_side: found"),
        (
            lambda b: {**b, "labels": torch.full_like(b["labels"], IGNORED)},
            DataError,
            "labels: found a row without any",
        ),
    ],
    ids=["packed", "left", "unlabelled"],
)
def test_a_batch_that_would_be_read_wrongly_is_refused(
    make_config: MakeConfig, tmp_path: Path, changed: Any, error: type[Exception], message: str
) -> None:
    examples = random_examples(2)
    trainer = make_trainer(peft_model(make_config()), examples, tmp_path)
    trainer.data_collator = lambda rows: changed(padded(rows))
    with pytest.raises(error, match=message):
        trainer.train()


def test_router_logits_are_float32_within_autocast(make_config: MakeConfig) -> None:
    torch.manual_seed(0)
    ours = RemixLinear(torch.nn.Linear(64, 6), name="up", config=make_config().adapter)
    theirs = peft_model(make_config()).get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    x_TD = torch.randn(5, 64)
    for layer in (ours, theirs):
        chosen: list[Tensor] = []
        layer.select = lambda z, k, chosen=chosen: chosen.append(z) or z.topk(k).indices
        y_TO = layer(x_TD)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            coarse_TO = layer(x_TD)
        assert not torch.equal(coarse_TO, y_TO)
        assert chosen[0].dtype == chosen[1].dtype == torch.float32
        assert torch.equal(chosen[0], chosen[1])
