"""A very small adapter, and hands to break its files byte by byte."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    Parity,
    ParityPrompt,
    read_checkpoint,
)
from remix_runtime.errors import CheckpointFormatError

CONFIG = AdapterConfig(
    base_model_name_or_path="tiny",
    num_experts=3,
    top_k=2,
    r=2,
    routing_weight=1.0,
    target_modules=("down_proj", "up_proj"),
)
BASE = {  # module name to (O, D)
    "model.layers.0.mlp.down_proj": (4, 6),
    "model.layers.0.mlp.up_proj": (6, 4),
    "model.layers.1.mlp.down_proj": (4, 6),
    "model.layers.1.mlp.up_proj": (6, 4),
}
BASE_WITH_OTHERS = {**BASE, "model.layers.0.self_attn.q_proj": (4, 4)}
FIRST = "base_model.model.model.layers.0.mlp.down_proj.remix_A.weight"

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PARITY_FILE = "parity.safetensors"


def make_layers(seed: int = 0) -> dict[str, LayerWeights]:
    generator = torch.Generator().manual_seed(seed)
    n, r = CONFIG.num_experts, CONFIG.r
    return {
        module: LayerWeights(
            a_nrD=torch.randn(n, r, width_d, generator=generator),
            b_nOr=torch.randn(n, width_o, r, generator=generator),
            router_nD=torch.randn(n, width_d, generator=generator),
        )
        for module, (width_o, width_d) in BASE.items()
    }


def make_parity(tokens: int = 5) -> Parity:
    """Well formed, for a model that does not exist."""
    layers, k = len(BASE), CONFIG.top_k
    prompt = ParityPrompt(
        token_ids_T=torch.arange(tokens),
        routes_LTk=torch.tensor([0, 2], dtype=torch.uint8).expand(layers, tokens, k),
        margins_LT=torch.full((layers, tokens), 0.5),
        top_ids_j=torch.tensor([7, 3, 5]),
        top_logits_j=torch.tensor([2.0, 1.0, -1.0]),
    )
    return Parity(prompts=(prompt, prompt), route_tolerance=1e-4, logit_tolerance=1e-3)


def edit_config(folder: Path, change: Mapping[str, Any] | Callable[[dict], Any]) -> None:
    """Writes the config back with fields replaced, or as `change` made it."""
    path = folder / CONFIG_FILE
    fields = json.loads(path.read_text())
    if callable(change):
        fields = change(fields)
    else:
        fields.update(change)
    path.write_text(json.dumps(fields))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and data of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any] | bytes, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def edit_header(folder: Path, change: Callable[[dict], Any], file: str = TENSOR_FILE) -> None:
    """`change` edits the parsed header in place, or returns other bytes for it."""
    path = folder / file
    header, data = split(path.read_bytes())
    path.write_bytes(join(change(header) or header, data))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """`change` edits the tensors in place; the file is written anew by the library."""
    from safetensors.torch import load, save

    path = folder / TENSOR_FILE
    tensors = load(path.read_bytes())
    change(tensors)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))


def refused(folder: Path, *parts: str, **options: Any) -> None:
    """`read_checkpoint` refuses the folder in one line that holds every part."""
    with pytest.raises(CheckpointFormatError) as caught:
        read_checkpoint(folder, **options)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert len(message) < 600
