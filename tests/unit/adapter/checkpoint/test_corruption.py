"""Random damage to every file: refused with a `CheckpointError`, or another adapter; never both
the same identity and other bytes, never another exception."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from remix_runtime.adapter.checkpoint import read_checkpoint, read_parity, write_checkpoint
from remix_runtime.errors import CheckpointError
from tests.unit.adapter.checkpoint.adapters import (
    BASE,
    CONFIG,
    CONFIG_FILE,
    PARITY_FILE,
    TENSOR_FILE,
    join,
    make_layers,
    make_parity,
    split,
)

Damage = Callable[[bytes], bytes]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """One folder for all examples; each writes the file it damages, whole."""
    path = tmp_path_factory.mktemp("corruption") / "adapter"
    write_checkpoint(path, CONFIG, make_layers(), readme="", parity=make_parity())
    return path


def _at(data: bytes, where: float) -> int:
    return int(where * (len(data) - 1))


def flip(where: float, bit: int) -> Damage:
    def damage(data: bytes) -> bytes:
        i = _at(data, where)
        return data[:i] + bytes([data[i] ^ (1 << bit)]) + data[i + 1 :]

    return damage


def cut(where: float) -> Damage:
    return lambda data: data[: _at(data, where)]


def insert(where: float, more: bytes) -> Damage:
    return lambda data: data[: _at(data, where)] + more + data[_at(data, where) :]


def overwrite(where: float, more: bytes) -> Damage:
    return lambda data: data[: _at(data, where)] + more + data[_at(data, where) + len(more) :]


# Half of the positions lie in the first tenth, where headers are.
places = st.one_of(st.floats(0, 0.1), st.floats(0, 1))
some_bytes = st.binary(min_size=1, max_size=12)
damages = st.one_of(
    st.builds(flip, places, st.integers(0, 7)),
    st.builds(cut, places),
    st.builds(insert, places, some_bytes),
    st.builds(overwrite, places, some_bytes),
    st.builds(insert, st.just(1.0), some_bytes),
)
many = settings(max_examples=150)


def read_damaged(folder: Path, file: str, damaged: bytes, original: bytes) -> None:
    digest = read_checkpoint(folder).digest
    (folder / file).write_bytes(damaged)
    try:
        found = read_checkpoint(folder, base=BASE).digest
    except CheckpointError as error:
        found = str(error)
    finally:
        (folder / file).write_bytes(original)
    assert "\n" not in found
    assert len(found) < 1000
    if damaged == original:
        assert found == digest
    elif found == digest:
        assert file == CONFIG_FILE
        assert without_nulls(damaged) == without_nulls(original)


def without_nulls(config: bytes) -> dict[str, Any]:
    """The fields of a config that are set: a newer PEFT writes more of them, as null."""
    return {name: value for name, value in json.loads(config).items() if value is not None}


@many
@given(damage=damages)
def test_damaged_tensor_file(sound, damage):
    original = (sound / TENSOR_FILE).read_bytes()
    read_damaged(sound, TENSOR_FILE, damage(original), original)


@many
@given(damage=damages)
def test_damaged_config(sound, damage):
    original = (sound / CONFIG_FILE).read_bytes()
    damaged = damage(original)
    read_damaged(sound, CONFIG_FILE, damaged, original)


@many
@given(damage=damages)
def test_damaged_parity_file(sound, damage):
    original = (sound / PARITY_FILE).read_bytes()
    (sound / PARITY_FILE).write_bytes(damage(original))
    try:
        parity = read_parity(sound, vocab_size=10)
    except CheckpointError:
        return
    finally:
        (sound / PARITY_FILE).write_bytes(original)
    assert parity is not None
    for prompt in parity.prompts:
        assert 0 <= int(prompt.token_ids_T.min()) <= int(prompt.token_ids_T.max()) < 10


numbers = st.one_of(
    st.integers(-2, 8),
    st.sampled_from([1 << 31, 1 << 32, 1 << 53, 1 << 60, (1 << 62) - 1, 1 << 64, 10**30]),
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@many
@given(
    which=st.integers(0, 11),
    field=st.sampled_from(["dtype", "shape", "data_offsets"]),
    value=anything | st.lists(numbers, max_size=4) | st.sampled_from(["F16", "BF16", "F8_E4M3"]),
)
@example(which=0, field="shape", value=[1 << 60])
@example(which=0, field="data_offsets", value=[0, 1 << 60])
def test_forged_header_entry(sound, which, field, value):
    original = (sound / TENSOR_FILE).read_bytes()
    header, data = split(original)
    header[[name for name in header if name != "__metadata__"][which]][field] = value
    read_damaged(sound, TENSOR_FILE, join(header, data), original)


@many
@given(
    name=st.sampled_from(
        ["num_experts", "top_k", "r", "routing_weight", "target_modules", "format_version", "new"]
    ),
    value=anything,
)
def test_forged_config_field(sound, name, value):
    original = (sound / CONFIG_FILE).read_bytes()
    fields = {**json.loads(original), name: value}
    read_damaged(sound, CONFIG_FILE, json.dumps(fields).encode(), original)
