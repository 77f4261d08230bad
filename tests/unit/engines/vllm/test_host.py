"""Adapters on their way to a worker's layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint import read_checkpoint
from remix_runtime.adapter.checkpoint.types import LayerWeights, Mixture
from remix_runtime.adapter.layers import base_shapes
from remix_runtime.engines.vllm.host import (
    MAX_EXPERTS,
    HostLayer,
    is_ours,
    read_layers,
    require_fit,
    require_named,
)
from remix_runtime.errors import CapacityError, CheckpointMismatchError
from remix_runtime.kernels import MixtureWeights
from tests.models import tiny_model

N, R, D, WIDTH = 3, 2, 12, 8
MIXTURE = Mixture(num_experts=N, top_k=2, r=R, routing_weight=0.5)


def random_layer() -> LayerWeights:
    generator = torch.Generator().manual_seed(0)
    return LayerWeights(
        *(torch.randn(*shape, generator=generator) for shape in ((N, R, D), (N, WIDTH, R), (N, D)))
    )


def assert_same(found: MixtureWeights, expected: MixtureWeights) -> None:
    assert torch.equal(found.a, expected.a)
    assert torch.equal(found.b, expected.b)
    for name in ("routing_weight", "n", "k", "r", "in_features", "out_features", "lanes"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"peft_type": "REMIX"}', True),
        (b'{"peft_type": "LORA"}', False),
        (b"{}", False),
        (b'["REMIX"]', False),
        (b'"REMIX"', False),
        (b"{", False),
        (b"\xff\xfe", False),
        (b"", False),
        (None, False),
    ],
)
def test_of_other_names_only_a_folder_that_says_that_it_is_remix_is_ours(
    tmp_path: Path, content: bytes | None, expected: bool
) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_bytes(content)
    assert is_ours(tmp_path, "pirate") == expected
    assert is_ours(tmp_path, "0f" * 32)


def test_odd_folders_are_not_remix(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").mkdir()
    assert not is_ours(tmp_path, "pirate")
    assert not is_ours(tmp_path / "adapter_config.json" / "nothing", "pirate")


@pytest.mark.parametrize("plain", [True, False])
def test_a_plain_lora_is_a_mixture_of_one(plain: bool) -> None:
    layer = random_layer()
    a_rD, b_Or = layer.a_nrD[0], layer.b_nOr[0]

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    lora = HostLayer.plain_lora(a_rD, b_Or).laid_out(whole, whole, plain=plain)
    one = LayerWeights(a_rD[None], b_Or[None], torch.zeros(1, D))
    assert_same(lora, MixtureWeights.from_layer(one, 1, 1.0, plain=plain))


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_parts_of_two_ranks(rank: int, plain: bool) -> None:
    """Of the outputs where a linear is split by columns, of the inputs where by rows."""
    layer = random_layer()
    outputs = slice(rank * WIDTH // 2, (rank + 1) * WIDTH // 2)
    inputs = slice(rank * D // 2, (rank + 1) * D // 2)
    columns = HostLayer(layer, MIXTURE).laid_out(lambda a: a, lambda b: b[outputs], plain=plain)
    expected = LayerWeights(layer.a_nrD, layer.b_nOr[:, outputs], layer.router_nD)
    assert_same(columns, MixtureWeights.from_layer(expected, 2, 0.5, plain=plain))
    rows = HostLayer(layer, MIXTURE).laid_out(lambda a: a[:, inputs], lambda b: b, plain=plain)
    expected = LayerWeights(layer.a_nrD[..., inputs], layer.b_nOr, layer.router_nD[:, inputs])
    assert_same(rows, MixtureWeights.from_layer(expected, 2, 0.5, plain=plain))


def test_a_layer_is_laid_out_once() -> None:
    layer = HostLayer(random_layer(), MIXTURE)
    first = layer.laid_out(lambda a: a, lambda b: b, plain=True)
    assert layer.laid_out(lambda a: a, lambda b: b, plain=True) is first
    assert layer.pin_memory() is layer


def test_limits_are_named() -> None:
    require_fit(MAX_EXPERTS, 2, max_rows=2 * MAX_EXPERTS)
    with pytest.raises(CapacityError, match=r"max_lora_rank: .* 9 together; found 8"):
        require_fit(3, 3, max_rows=8)
    with pytest.raises(CapacityError, match=f"num_experts: found {MAX_EXPERTS + 1}"):
        require_fit(MAX_EXPERTS + 1, 1, max_rows=512)


def test_a_folder_is_read_with_its_limits(folders: list[Path]) -> None:
    base = base_shapes(tiny_model("llama-32"))
    checkpoint, layers = read_layers(folders[0], base, max_rows=4)
    assert layers.keys() == read_checkpoint(folders[0]).layers.keys()
    config = json.loads((folders[0] / "adapter_config.json").read_text())
    assert checkpoint.config.num_experts == config["num_experts"]
    with pytest.raises(CapacityError):
        read_layers(folders[0], base, max_rows=3)


def test_a_name_that_is_another_digest_is_refused() -> None:
    digest, other = "a" * 64, "b" * 64
    for name in (digest, "support-bot", "B" * 64, other[1:]):
        require_named(digest, name)
    with pytest.raises(CheckpointMismatchError, match=f"found .*{digest}, expected {other}"):
        require_named(digest, other)
