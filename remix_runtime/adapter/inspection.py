"""What `remix check` finds out about an adapter folder, alone or on its base model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remix_runtime.adapter.checkpoint import (
    Checkpoint,
    Parity,
    describe,
    read_adapter,
)
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import model_runner, replay_parity

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # seconds to import, for nothing without a base

_KINDS = {
    "ReMix": "ReMix, a mixture of LoRAs with a router",
    "LoRA": "plain LoRA, served as a mixture of one expert that is always on",
}


def inspect_adapter(folder: Path, base: str | None = None) -> dict[str, Any]:
    """The facts about an adapter, ready for JSON.

    `base` is a folder or hub id. With it the shapes must fit that model and the parity file, if
    there is one, must replay in float32. Raises `CheckpointError`, `ConfigError`.
    """
    if base is None:
        checkpoint, parity = read_adapter(folder)
        fit = "not checked (give --base)"
        replay = "not replayed (give --base)" if parity else "no parity file"
    else:
        checkpoint, parity, model = _read_on(folder, base)
        fit = f"fits {base}"
        replay = _replay(model, checkpoint, parity) if parity else "no parity file"
    facts = asdict(describe(checkpoint))
    facts["target_modules"] = list(facts["target_modules"])
    return {**facts, "base": fit, "parity": replay}


def as_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as a table for people: (name, value)."""
    targets = ", ".join(f"{count} {name}" for name, count in facts["layers_by_target"].items())
    rule = facts["scaling"] or "neither the lora nor the rslora rule"
    most = "" if facts["num_ranks"] == 1 else "at most "
    return [
        ("kind", _KINDS[facts["kind"]]),
        ("digest", facts["digest"]),
        ("trained on", facts["base_model_name_or_path"] or "unknown"),
        ("adapted linears", f"{facts['num_layers']} ({targets})"),
        ("target modules", ", ".join(facts["target_modules"])),
        ("experts", f"n = {facts['num_experts']}, k = {facts['top_k']}, r = {most}{facts['r']}"),
        ("routing weight", f"ω = {most}{facts['routing_weight']:.6g} ({rule})"),
        (
            "parameters",
            f"{facts['num_parameters']:,}, active per token {facts['num_active_parameters']:,}",
        ),
        ("size", f"{facts['num_bytes'] / 1e6:.2f} MB in float32"),
        ("defaults", ", ".join(facts["defaults"]) or "none"),
        ("base", facts["base"]),
        ("parity", facts["parity"]),
    ]


def _read_on(folder: Path, base: str) -> tuple[Checkpoint, Parity | None, PreTrainedModel]:
    from remix_runtime.base.model import load_model

    model = load_model(base, download=True)
    checkpoint, parity = read_adapter(
        folder,
        base=base_shapes(model),
        vocab_size=model.config.vocab_size,
        max_tokens=model.config.max_position_embeddings,
    )
    return checkpoint, parity, model


def _replay(model: PreTrainedModel, checkpoint: Checkpoint, parity: Parity) -> str:
    layers = attach_checkpoint(model, checkpoint)
    decisive = replay_parity(parity, model_runner(model, layers))
    return f"{len(parity.prompts)} prompts replayed, {decisive} without a near-tie"
