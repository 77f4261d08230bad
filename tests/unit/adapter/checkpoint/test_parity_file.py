"""`parity.safetensors` as a file: what goes in comes out, and what else is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from remix_runtime.adapter.checkpoint import CheckpointLimits, Parity, read_parity
from remix_runtime.adapter.checkpoint.parity_file import MAX_TOKENS, emit_parity
from remix_runtime.errors import CheckpointFormatError
from tests.unit.adapter.checkpoint.adapters import PARITY_FILE, edit_header, make_parity

METADATA = {
    "format_version": "1",
    "prompts": "2",
    "route_tolerance": "0.0001",
    "logit_tolerance": "0.001",
}


def assert_equal(found: Parity, expected: Parity) -> None:
    assert found.route_tolerance == expected.route_tolerance
    assert found.logit_tolerance == expected.logit_tolerance
    assert len(found.prompts) == len(expected.prompts)
    for a, b in zip(found.prompts, expected.prompts, strict=True):
        for part in a.__dataclass_fields__:
            assert torch.equal(getattr(a, part), getattr(b, part)), part


def test_round_trip(folder):
    found = read_parity(folder, vocab_size=8)
    assert found is not None
    assert_equal(found, make_parity())


def test_prompts_of_different_lengths_and_an_unbounded_margin(folder):
    long = make_parity(tokens=9).prompts[0]
    long = replace(long, margins_LT=torch.full_like(long.margins_LT, torch.inf))
    parity = replace(make_parity(), prompts=(*make_parity().prompts, long), route_tolerance=3e-7)
    (folder / PARITY_FILE).write_bytes(emit_parity(parity))
    found = read_parity(folder)
    assert found is not None
    assert_equal(found, parity)


def test_no_file_is_no_parity(folder):
    (folder / PARITY_FILE).unlink()
    assert read_parity(folder) is None


def refused(folder, *parts: str, **options) -> None:
    with pytest.raises(CheckpointFormatError) as caught:
        read_parity(folder, **options)
    message = str(caught.value)
    assert message.startswith("parity.safetensors: ")
    assert all(part in message for part in parts), message
    assert "\n" not in message


def test_tokens_of_all_prompts_are_limited(folder):
    """Small files would be hours of others' time."""
    most = replace(make_parity(), prompts=make_parity(tokens=MAX_TOKENS // 2).prompts)
    (folder / PARITY_FILE).write_bytes(emit_parity(most))
    assert read_parity(folder) is not None
    more = replace(most, prompts=(*most.prompts, make_parity(tokens=1).prompts[0]))
    (folder / PARITY_FILE).write_bytes(emit_parity(more))
    refused(folder, f"found {MAX_TOKENS + 1} tokens in 3 prompts", f"at most {MAX_TOKENS}")


def test_size_is_limited(folder):
    refused(folder, "at most 100", limits=CheckpointLimits(parity_bytes=100))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format_version", "2"),
        ("format_version", None),
        ("prompts", None),
        ("prompts", "0"),
        ("prompts", "65"),
        ("prompts", "-1"),
        ("prompts", "²"),
        ("prompts", "2.0"),
        ("route_tolerance", None),
        ("route_tolerance", "0.0"),
        ("route_tolerance", "1.5"),
        ("route_tolerance", "nan"),
        ("route_tolerance", "inf"),
        ("route_tolerance", "-0.1"),
        ("logit_tolerance", "1e999"),
        ("logit_tolerance", "1_0e-3"),
        ("logit_tolerance", "9" * 5000),
    ],
)
def test_metadata(folder, name, value):
    def change(header):
        if value is None:
            del header["__metadata__"][name]
        else:
            header["__metadata__"][name] = value

    edit_header(folder, change, PARITY_FILE)
    refused(folder, name)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("prompt.0.token_ids", torch.arange(6)),
        ("prompt.0.token_ids", torch.arange(5, dtype=torch.float32)),
        ("prompt.0.token_ids", torch.arange(5).reshape(1, 5)),
        ("prompt.0.token_ids", torch.zeros(0, dtype=torch.int64)),
        ("prompt.1.routes", torch.zeros(3, 5, 2, dtype=torch.uint8)),
        ("prompt.1.routes", torch.zeros(4, 5, 3, dtype=torch.uint8)),
        ("prompt.1.routes", torch.zeros(4, 5, 2, dtype=torch.int64)),
        ("prompt.1.margins", torch.zeros(4, 6)),
        ("prompt.1.top_logits", torch.zeros(4)),
        ("prompt.2.token_ids", torch.arange(5)),
        ("weights", torch.zeros(5)),
    ],
)
def test_tensors_that_do_not_fit(folder, name, tensor):
    tensors = load((folder / PARITY_FILE).read_bytes())
    (folder / PARITY_FILE).write_bytes(save({**tensors, name: tensor}, metadata=METADATA))
    refused(folder, "prompt." if name.startswith("prompt") else name)


def test_missing_tensor(folder):
    tensors = load((folder / PARITY_FILE).read_bytes())
    del tensors["prompt.1.margins"]
    (folder / PARITY_FILE).write_bytes(save(tensors, metadata=METADATA))
    refused(folder, "prompt.1.margins", "missing")


@pytest.mark.parametrize(
    ("part", "index", "value"),
    [
        ("token_ids", (3,), -1),
        ("token_ids", (3,), 10),
        ("token_ids", (3,), 1 << 62),
        ("top_ids", (1,), 10),
        ("top_ids", (1,), -5),
        ("routes", (1, 2, 0), 2),  # the same expert twice
        ("routes", (1, 2, 0), 9),  # not ascending
        ("margins", (0, 4), float("nan")),
        ("margins", (0, 4), -0.5),
        ("top_logits", (2,), float("inf")),
        ("top_logits", (2,), float("nan")),
    ],
)
def test_values(folder, part, index, value):
    tensors = load((folder / PARITY_FILE).read_bytes())
    tensors[f"prompt.1.{part}"][index] = value
    (folder / PARITY_FILE).write_bytes(save(tensors, metadata=METADATA))
    refused(folder, f"prompt.1.{part}", str(list(index)), vocab_size=10)
