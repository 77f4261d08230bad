"""`read_checkpoint`: the tensors come back as they were, or are refused for a named reason."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.adapter.checkpoint import reader as reader_module
from remix_runtime.errors import CheckpointMismatchError
from tests.unit.adapter.checkpoint.adapters import (
    BASE,
    BASE_WITH_OTHERS,
    CONFIG,
    FIRST,
    TENSOR_FILE,
    edit_config,
    edit_header,
    edit_tensors,
    join,
    make_layers,
    refused,
    split,
)

ROUTER = FIRST.replace("remix_A", "remix_router")
B = FIRST.replace("remix_A", "remix_B")


def test_tensors_come_back_bit_for_bit_in_sorted_order(folder):
    checkpoint = read_checkpoint(folder, base=BASE_WITH_OTHERS)
    assert list(checkpoint.layers) == sorted(BASE)
    for module, layer in make_layers().items():
        found = checkpoint.layers[module]
        assert torch.equal(found.a_nrD, layer.a_nrD)
        assert torch.equal(found.b_nOr, layer.b_nOr)
        assert torch.equal(found.router_nD, layer.router_nD)
    assert checkpoint.config == CONFIG
    sizes = [3 * 2 * d + 3 * o * 2 + 3 * d for o, d in BASE.values()]
    assert checkpoint.num_bytes == 4 * sum(sizes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_files_are_read_as_float32(tmp_path, dtype):
    write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="", dtype=dtype)
    checkpoint = read_checkpoint(tmp_path / "a", base=BASE)
    for module, layer in make_layers().items():
        assert checkpoint.layers[module].b_nOr.dtype == torch.float32
        assert torch.equal(checkpoint.layers[module].b_nOr, layer.b_nOr.to(dtype).float())


# The header of the tensor file


@pytest.mark.parametrize("claim", [0, 1, 1 << 22, 1 << 60, (1 << 64) - 1])
def test_header_length_is_not_believed(folder, claim):
    data = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(struct.pack("<Q", claim) + data[8:])
    tracemalloc.start()
    try:
        refused(folder, TENSOR_FILE, "header")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [0, 3, 7, 8, 9])
def test_file_shorter_than_its_header(folder, size):
    data = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(data[:size])
    refused(folder, TENSOR_FILE)


def test_truncated_and_extended_data(folder):
    data = (folder / TENSOR_FILE).read_bytes()
    (folder / TENSOR_FILE).write_bytes(data[:-1])
    refused(folder, TENSOR_FILE, "within")
    (folder / TENSOR_FILE).write_bytes(data + b"\0")
    refused(folder, TENSOR_FILE, "bytes of data")


def test_duplicate_key_in_the_header(folder):
    header, data = split((folder / TENSOR_FILE).read_bytes())
    text = b'{"__metadata__":{},' + join(header, b"")[9:]
    (folder / TENSOR_FILE).write_bytes(join(text, data))
    refused(folder, TENSOR_FILE, "__metadata__", "twice")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b" {}", "begin"),
        (b"[]", "begin"),
        (b"{]", "JSON"),
        (b'{"\xff":1}', "JSON"),
        (b"{" * 5000, "JSON"),
        (b'{"__metadata__":{"format":1}}', "text values"),
        (b'{"__metadata__":"pt"}', "text values"),
    ],
)
def test_header_that_is_no_header(folder, text, expected):
    _, data = split((folder / TENSOR_FILE).read_bytes())
    (folder / TENSOR_FILE).write_bytes(join(text, data))
    refused(folder, TENSOR_FILE, expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda e: e.update(dtype="F64"), "dtype 'F64'"),
        (lambda e: e.update(dtype="I64"), "dtype 'I64'"),
        (lambda e: e.update(dtype=["F32"]), "dtype"),
        (lambda e: e.update(shape=[3, 2, -6]), "shape"),
        (lambda e: e.update(shape=[3, 2, 6.0]), "shape"),
        (lambda e: e.update(shape=[True, 2, 6]), "shape"),
        (lambda e: e.update(shape="326"), "shape"),
        (lambda e: e.update(shape=[1] * 20), "shape"),
        (lambda e: e.update(shape=[3, 2, 1 << 61]), "data_offsets"),
        (lambda e: e.update(shape=[1 << 63, 1 << 63, 4]), "shape"),
        (lambda e: e.update(data_offsets=[0]), "data_offsets"),
        (lambda e: e.update(data_offsets=[-1, 143]), "data_offsets"),
        (lambda e: e.update(data_offsets=[144, 0]), "data_offsets"),
        (lambda e: e.update(data_offsets=[0.0, 144]), "data_offsets"),
        (lambda e: e.update(data_offsets=[0, 148]), "data_offsets"),
        (lambda e: e.update(data_offsets=[1 << 60, (1 << 60) + 144]), "data_offsets"),
        (lambda e: e.update(more=1), "exactly"),
        (lambda e: e.pop("dtype"), "exactly"),
    ],
)
def test_entry_of_the_header(folder, change, expected):
    edit_header(folder, lambda header: change(header[FIRST]) and None)
    refused(folder, TENSOR_FILE, FIRST[:20], expected)


def test_overlapping_tensors(folder):
    def overlap(header):
        header[ROUTER]["data_offsets"] = header[FIRST]["data_offsets"][:]
        header[ROUTER]["shape"] = header[FIRST]["shape"]

    edit_header(folder, overlap)
    refused(folder, TENSOR_FILE, "data_offsets")


def test_hole_between_tensors(folder):
    header, data = split((folder / TENSOR_FILE).read_bytes())
    for name, entry in header.items():
        if name != "__metadata__" and entry["data_offsets"][0] > 0:
            entry["data_offsets"] = [offset + 4 for offset in entry["data_offsets"]]
    (folder / TENSOR_FILE).write_bytes(join(header, data + bytes(4)))
    refused(folder, TENSOR_FILE, "expected to begin at")


@pytest.mark.parametrize("change", ["shorter", "header"])
def test_file_that_changes_after_its_header_was_judged(folder, monkeypatch, change):
    judge = reader_module.read_header

    def judge_and_change(stream, size, **options):
        header = judge(stream, size, **options)
        with (folder / TENSOR_FILE).open("r+b") as other:
            if change == "shorter":
                other.truncate(size - 1)
            else:  # the same length, another shape
                other.write(header.raw.replace(b"[3,2,6]", b"[3,6,2]"))
        return header

    monkeypatch.setattr(reader_module, "read_header", judge_and_change)
    refused(folder, TENSOR_FILE, "while it was read")


# Names and shapes


def test_missing_and_unexpected_tensors(folder, tmp_path):
    original = (folder / TENSOR_FILE).read_bytes()
    for change, parts in (
        (lambda t: t.pop(FIRST), [FIRST, "missing"]),
        (lambda t: t.update({FIRST + ".extra": torch.ones(1)}), ["extra", "expected only"]),
        (lambda t: t.update({"lora_A.weight": torch.ones(1)}), ["lora_A", "expected only"]),
        (
            lambda t: t.update({FIRST.replace("down_proj", "q_proj"): torch.ones(3, 2, 6)}),
            ["q_proj", "expected only"],
        ),
    ):
        (folder / TENSOR_FILE).write_bytes(original)
        edit_tensors(folder, change)
        refused(folder, TENSOR_FILE, *parts)


def test_target_without_tensors(folder):
    edit_config(folder, {"target_modules": ["down_proj", "up_proj", "gate_proj"]})
    refused(folder, TENSOR_FILE, "gate_proj")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (FIRST, (2, 2, 6)),
        (FIRST, (3, 3, 6)),
        (FIRST, (3, 2, 7)),
        (FIRST, (36,)),
        (FIRST, ()),
        (FIRST, (3, 2, 0)),
        (B, (3, 2, 4)),
        (B, (4, 4, 2)),
        (B, (3, 0, 2)),
        (B, (24,)),
        (ROUTER, (3, 7)),
        (ROUTER, (2, 6)),
        (ROUTER, (3, 6, 1)),
    ],
)
def test_tensor_of_another_shape(folder, name, shape):
    edit_tensors(folder, lambda tensors: tensors.update({name: torch.ones(shape)}))
    refused(folder, TENSOR_FILE, "model.layers.0.mlp.down_proj", "found shape", "n=3, r=2")


@pytest.mark.parametrize("change", [{"num_experts": 2}, {"r": 4}])
def test_config_that_does_not_fit_the_tensors(folder, change):
    edit_config(folder, change)
    refused(folder, TENSOR_FILE, "found shape")


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ({**BASE, "model.layers.2.mlp.up_proj": (6, 4)}, "no tensors for model.layers.2.mlp.up"),
        ({k: v for k, v in BASE.items() if "1.mlp.up" not in k}, "tensors for model.layers.1"),
        ({**BASE, "model.layers.1.mlp.up_proj": (8, 4)}, "found output and input width 6 and 4"),
        ({**BASE, "model.layers.1.mlp.up_proj": (6, 5)}, "expected 6 and 5"),
        ({"model.layers.0.mlp.up_proj": (6, 4)}, "'down_proj' names no linear layer"),
        ({}, "names no linear layer"),
    ],
)
def test_another_base_model(folder, base, expected):
    with pytest.raises(CheckpointMismatchError, match=expected):
        read_checkpoint(folder, base=base)


# Values


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [FIRST, B, ROUTER])
def test_values_that_are_not_finite(folder, name, value):
    edit_tensors(folder, lambda tensors: tensors[name].view(-1).__setitem__(5, value))
    refused(folder, TENSOR_FILE, name, str(value), "finite")


def test_adapter_that_changes_nothing(folder):
    def zero(part):
        def change(tensors):
            for name, tensor in tensors.items():
                if part in name:
                    tensor.zero_()

        return change

    original = (folder / TENSOR_FILE).read_bytes()
    for part in ("remix_A", "remix_B"):
        (folder / TENSOR_FILE).write_bytes(original)
        edit_tensors(folder, zero(part))
        refused(folder, TENSOR_FILE, "B·A = 0", "changes")
    (folder / TENSOR_FILE).write_bytes(original)
    edit_tensors(folder, zero("remix_router"))  # all ties: experts 0 to k-1, a real adapter
    read_checkpoint(folder)


def test_zero_product_of_tensors_that_are_not_zero(folder):
    def disjoint(tensors):
        for name, tensor in tensors.items():
            if "remix_A" in name:
                tensor[:, 1] = 0
            elif "remix_B" in name:
                tensor[..., 0] = 0

    edit_tensors(folder, disjoint)
    refused(folder, TENSOR_FILE, "B·A = 0")


def test_one_expert_with_an_effect_is_enough(folder):
    def only_one(tensors):
        for name, tensor in tensors.items():
            if "remix_B" in name:
                keep = tensor[2, 1, 0].clone()
                tensor.zero_()
                if name == B:
                    tensor[2, 1, 0] = keep

    edit_tensors(folder, only_one)
    read_checkpoint(folder)


def test_experts_that_overflow(folder):
    edit_tensors(folder, lambda tensors: (tensors[FIRST].fill_(1e30), tensors[B].fill_(1e30)))
    refused(folder, TENSOR_FILE, "overflows", "model.layers.0.mlp.down_proj")
