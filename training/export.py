"""A trained run as an adapter folder: tensors, model card, parity prompts, record of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.adapter.layers import attach_weights
from remix_runtime.adapter.parity import record_parity
from training.base import load_base
from training.config import TrainConfig
from training.data import sequences_of
from training.encoding import Example
from training.log import Row
from training.objective import Layers
from training.quantization import is_quantized
from training.record import training_record
from training.sharding import is_sharded
from training.sources import is_hub_name

PARITY_PROMPTS = 4
PARITY_TOKENS = 64
"""The most tokens of a parity prompt: it is replayed at every load."""


def export_adapter(
    folder: Path,
    *,
    config: TrainConfig,
    model: PreTrainedModel,
    layers: Layers,
    rows: Sequence[Example | Sequence[Example]],
    log: Sequence[Row],
) -> str:
    """Writes the adapter folder and returns its digest. Rounds the layers to `config.dtype`.

    The parity prompts are whole rows of the training data, prompt and completion, spread over
    the file.
    """
    assert config.method != "softmax", "a softmax mixture has no servable form"
    dtype = getattr(torch, config.dtype)
    _round(layers, dtype)
    weights = {name: layer.weights() for name, layer in layers.items()}
    if model.dtype != torch.float32 or _is_smaller(model):
        model, layers = _in_float32(config, model, weights)
    stride = max(1, len(rows) // PARITY_PROMPTS)
    spread = range(0, len(rows), stride)[:PARITY_PROMPTS]
    examples = [sequences_of(rows[i])[-1] for i in spread]
    prompts = [list(example.tokens[:PARITY_TOKENS]) for example in examples]
    training = training_record(model, layers, rows, log)
    return write_checkpoint(
        folder,
        config.adapter,
        weights,
        readme=model_card(config, log=log, num_rows=len(rows)),
        parity=record_parity(model, layers, prompts),
        defaults=config.defaults,
        training=training,
        dtype=dtype,
    )


def _in_float32(
    config: TrainConfig, trained: PreTrainedModel, weights: Mapping[str, LayerWeights]
) -> tuple[PreTrainedModel, Layers]:
    """The adapter on the base in float32, which a parity file is recorded on: loaded again, since
    the trained one may hold numbers that are not the file's, or a part of them. On the CPU where
    it may be larger than a device."""
    device = torch.device("cpu") if _is_smaller(trained) else trained.device
    model, _ = load_base(config.base, device)
    return model, attach_weights(model, config.adapter, weights)


def _is_smaller(model: PreTrainedModel) -> bool:
    """Whether a device that has room for it may have none for the base in float32."""
    return is_sharded(model) or is_quantized(model)


def _round(layers: Layers, dtype: torch.dtype) -> None:
    """Rounds the layers in place, so that the parity prompts see the weights that are served."""
    with torch.no_grad():
        for layer in layers.values():
            for weight in (layer.a_nrD, layer.b_nOr, layer.router_nD):
                weight.copy_(weight.to(dtype))


def _named(source: Path) -> str:
    """A source without folders of this machine: a hub's name is all of it."""
    return str(source) if is_hub_name(source) and not source.exists() else source.name


def model_card(config: TrainConfig, *, log: Sequence[Row], num_rows: int) -> str:
    """The model card in Markdown: the adapter, its data, its metrics, the command that made it."""
    adapter = config.adapter
    kind = "plain LoRA, stored as one ReMix expert" if config.method == "lora" else "ReMix adapter"
    steps = log[-1]["step"] if log else config.steps
    tail = [row["loss"] for row in log[-10:]]
    mean = f"{sum(tail) / len(tail):.4f}" if tail else "not recorded"
    metrics = [f"| training loss, mean of the last {len(tail)} steps | {mean} |"]
    held_out = [row["held_out_loss"] for row in log if "held_out_loss" in row]
    if held_out:
        metrics.append(f"| held-out loss | {held_out[-1]:.4f} |")
    # File names only: a folder of the training machine means nothing to the reader.
    settings = config.model_dump(mode="json", exclude={"output", "threads", "base_name"})
    settings["base"] = adapter.base_model_name_or_path
    settings["data"] = _named(config.data)
    settings["eval_data"] = _named(config.eval_data) if config.eval_data else None
    if config.router_learning_rate is not None:
        del settings["router_logits_per_step"]
    if config.method != "remix":
        for unused in ("credit", "router", "selections"):
            del settings[unused]
    return "\n".join(
        [
            "---",
            f"base_model: {adapter.base_model_name_or_path}",
            "library_name: remix-serve",
            "tags: [remix, mixture-of-loras]",
            "---",
            "",
            f"# {config.data.stem}: a {kind}",
            "",
            f"{len(config.target_modules)} target modules, {adapter.num_experts} experts of rank "
            f"{adapter.r}, {adapter.top_k} active per token, ω = {adapter.routing_weight:.4g}.",
            "",
            "## Data",
            "",
            f"`{_named(config.data)}`, {num_rows} rows; loss on completions only.",
            "",
            "## Metrics",
            "",
            f"After {steps} steps, in nats per completion token:",
            "",
            "| metric | value |",
            "|---|---|",
            *metrics,
            "",
            "## Made with",
            "",
            "`remix train CONFIG.yaml`, where CONFIG.yaml holds",
            "",
            "```yaml",
            yaml.safe_dump(settings, sort_keys=False).rstrip(),
            "```",
            "",
        ]
    )
