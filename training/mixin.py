"""ReMix in other people's trainers: transformers' `Trainer`, TRL's `SFTTrainer`.

A step there has the gradients of a step of `remix train` on the same rows with the same seed. What
they do with the gradients is theirs: one norm is clipped for experts and routers together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import PreTrainedModel

from remix_runtime.adapter.layers import Routed
from remix_runtime.errors import ConfigError, DataError
from training.blocks import Blocks, blocks_of, routed_in
from training.data import Batch
from training.losses import IGNORED, Credit, loss_shares, token_losses
from training.objective import RoutingStats, remix_pass
from training.ranks import ALONE
from training.recompute import recompute_blocks
from training.router_rates import InputSizes, watching
from training.seeds import generator
from training.trunk import Trunk


class RemixTrainerMixin:
    """Makes a trainer train experts by their loss and routers by RLOO.

        class RemixTrainer(RemixTrainerMixin, Trainer):
            selections = 4

    The model is PEFT's with a `RemixConfig`, or one with `RemixLinear`s. Of a batch it reads
    `input_ids`, `labels` and `attention_mask`, as both trainers' collators make them. Where the
    trainer is told to checkpoint activations, blocks keep their selections.
    """

    selections: int = 4
    """M: selections drawn for each row of a batch; at least 2."""
    credit: Credit = "causal"
    """What a selection is charged with, see `TrainConfig.credit`."""

    loss_is_scaled_for_ga = False  # a mean over the rows of a batch
    _trunk: Trunk | None
    _blocks: Blocks
    _routed: dict[str, Routed] | None = None
    _step = _pass = -1
    _recomputes = False
    _stats: RoutingStats | None = None

    # Of the trainer.
    args: Any
    state: Any
    accelerator: Any

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """The loss that the trainer takes gradients of, and the model's output if it is asked for:
        then experts are the top-k, and there is nothing for routers in the loss. Raises
        `ConfigError` for a model or settings that cannot be trained so, `DataError` for a batch."""
        batch = _batch_of(inputs)
        whole = self.accelerator.unwrap_model(model)
        inner = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        if self._routed is None:
            self._routed = self._begin(inner)
        with self.accelerator.autocast():
            if return_outputs or not model.training:
                asked = {key: value for key, value in inputs.items() if key != "labels"}
                outputs = model(**asked, use_cache=False)  # as long as the labels, for metrics
                loss_BT = token_losses(outputs.logits[:, :-1], batch.labels_BT)
                loss = loss_shares(loss_BT, batch.labels_BT).sum(-1).mean()
                return (loss, outputs) if return_outputs else loss
            self._keep_selections(inner)
            loss, _, self._stats = remix_pass(
                inner,
                self._routed,
                batch,
                selections=self.selections,
                credit=self.credit,
                generator=self._draws(batch.inputs_BT.device),
                trunk=self._trunk,
            )
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's log, with what the routers of the newest batch did."""
        if self._stats is not None and "loss" in logs:
            logs |= {
                "routing_entropy": self._stats.entropy,
                "routing_support": self._stats.support,
            }
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _begin(self, model: PreTrainedModel) -> dict[str, Routed]:
        if self.accelerator.num_processes > 1:
            raise ConfigError(
                f"processes: found {self.accelerator.num_processes}, expected one: parts of the "
                "model are run by themselves, which its wrappers for many do not see"
            )
        if self.selections < 2:
            raise ConfigError(f"selections: found {self.selections}, expected at least 2")
        layers = {layer.name: layer for layer in routed_in(model)}
        if not layers:
            raise ConfigError("model: found no ReMix layer, expected a model with an adapter")
        self._trunk = Trunk.of(model)
        self._blocks = blocks_of(model)
        return layers

    def _keep_selections(self, model: PreTrainedModel) -> None:
        """Puts our checkpointing in the place of the trainer's own, which would draw other experts
        when it computes a block again. It is turned on when training begins, perhaps more than
        once."""
        blocks = (*self._blocks.below, *self._blocks.above)
        if not any(block.gradient_checkpointing for block in blocks):
            return
        if hasattr(model, "activation_checkpointing_disable"):  # its name from transformers 5.23 on
            model.activation_checkpointing_disable()
        else:
            model.gradient_checkpointing_disable()
        if not self._recomputes:
            recompute_blocks(model)
            self._recomputes = True

    def _draws(self, device: torch.device) -> torch.Generator:
        """Of the next pass: those of `remix train`."""
        step = self.state.global_step
        self._pass = self._pass + 1 if step == self._step else 0
        self._step = step
        index = step * self.args.gradient_accumulation_steps + self._pass
        return generator(self.args.seed, "selections", index, device=device)


def remix_optimizer(
    model: nn.Module,
    batch: Mapping[str, Any],
    *,
    expert_learning_rate: float = 3e-3,
    router_logits_per_step: float = 1.0,
    weight_decay: float = 0.0,
) -> AdamW:
    """AdamW over an adapter, for `Trainer(optimizers=(this, None))`. Each router has the rate that
    a step of so many logits comes to at the size of its inputs, which a pass over a collator's
    `batch` shows, as in `remix train`. Raises what the mixin raises for a batch."""
    layers = {layer.name: layer for layer in routed_in(model)}
    if not layers:
        raise ConfigError("model: found no ReMix layer, expected a model with an adapter")
    sizes, seen = InputSizes(layers), _batch_of(batch)
    with torch.no_grad(), watching(sizes, seen):
        model(**{name: ids.to(_device(model)) for name, ids in seen.model_inputs().items()})
    groups: list[dict[str, Any]] = []
    for layer, size in zip(layers.values(), sizes.settle(ALONE).tolist(), strict=True):
        routers = [p for name, p in layer.named_parameters() if "router" in name]
        if routers := [parameter for parameter in routers if parameter.requires_grad]:
            groups.append({"params": routers, "lr": router_logits_per_step / size})
    known = {parameter for group in groups for parameter in group["params"]}
    experts = [p for p in model.parameters() if p.requires_grad and p not in known]
    groups.append({"params": experts, "lr": expert_learning_rate})
    return AdamW(groups, lr=expert_learning_rate, weight_decay=weight_decay)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _batch_of(inputs: Mapping[str, Any]) -> Batch:
    """A collator's batch, right-padded, as ours: labels stand under the token before them."""
    for key in inputs.keys() - {"input_ids", "labels", "attention_mask"}:
        raise ConfigError(
            f"{key}: found in a batch, expected input_ids, labels and attention_mask only (rows "
            "are not packed)"
        )
    ids_BT, labels_BT = inputs["input_ids"], inputs["labels"]
    is_token_BT = inputs.get("attention_mask", torch.ones_like(ids_BT)).bool()
    if (is_token_BT[:, 1:] & ~is_token_BT[:, :-1]).any():
        raise ConfigError("padding_side: found padding before a token, expected right")
    mask_BT = is_token_BT[:, 1:]
    labels_BT = labels_BT[:, 1:].where(mask_BT, IGNORED)
    if (labels_BT == IGNORED).all(-1).any():
        raise DataError("labels: found a row without any, expected one at least to learn from")
    return Batch(ids_BT[:, :-1], labels_BT, mask_BT)
