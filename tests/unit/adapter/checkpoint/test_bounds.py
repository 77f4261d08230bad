"""What reading a folder takes does not grow faster than the folder."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import torch

from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    adapter_digest,
    read_checkpoint,
    write_checkpoint,
)
from remix_runtime.adapter.checkpoint import tensor_file as tensor_module
from remix_runtime.adapter.checkpoint.targets import Targets, target_shapes
from tests.unit.adapter.checkpoint.adapters import CONFIG, FIRST, TENSOR_FILE, edit_header, refused


class Counting(frozenset[str]):
    asked = 0

    def __contains__(self, name: object) -> bool:
        self.asked += 1
        return super().__contains__(name)


def test_a_name_is_looked_up_once_for_each_of_its_components() -> None:
    targets = Targets([f"t{n}" for n in range(4000)] + ["b.c", "c", "a.b.c", "x.c"])
    targets._names = names = Counting(targets._names)
    assert list(targets.naming("a.b.c")) == ["a.b.c", "b.c", "c"]
    assert names.asked == 3
    assert list(targets.naming("a.b.cc")) == []
    assert list(targets.naming("t17")) == ["t17"]
    assert list(targets.naming("")) == []


@pytest.mark.parametrize("targets", [("q",), ("a.q", "v"), ("1.a.q",)])
def test_targets_are_whole_names_or_last_components(targets: tuple[str, ...]) -> None:
    names = ["0.a.q", "1.a.q", "1.a.qq", "v", "1.v"]
    wanted = {n for n in names for t in targets if n == t or n.endswith("." + t)}
    assert target_shapes(dict.fromkeys(names, (1, 2)), targets) == dict.fromkeys(wanted, (1, 2))


def test_names_of_tensors_are_bounded(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lengthen(header: dict[str, Any]) -> None:
        header["x" * 513] = header.pop(FIRST)

    original = (folder / TENSOR_FILE).read_bytes()
    edit_header(folder, lengthen)
    refused(folder, TENSOR_FILE, "found a name of 513 characters", "at most 512")
    (folder / TENSOR_FILE).write_bytes(original)
    monkeypatch.setattr(tensor_module, "MAX_TENSORS", 11)
    refused(folder, TENSOR_FILE, "found 12 tensors", "at most 11")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reading_takes_the_tensors_once(tmp_path: Any, dtype: torch.dtype) -> None:
    """Of Python's memory: what float32 is made of has the size of one tensor."""
    config = AdapterConfig(**{**_fields(), "target_modules": ("p",)})
    n, r = config.num_experts, config.r
    layers = {
        f"l{i}.p": LayerWeights(torch.randn(n, r, 4096), torch.randn(n, 64, r), torch.ones(n, 4096))
        for i in range(16)
    }
    digest = write_checkpoint(tmp_path / "a", config, layers, readme="", dtype=dtype)
    data = (tmp_path / "a" / TENSOR_FILE).read_bytes()
    assert digest == adapter_digest(config, data)
    tracemalloc.start()
    try:
        checkpoint = read_checkpoint(tmp_path / "a")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert checkpoint.digest == digest
    held = len(data) if dtype is torch.float32 else len(data) // 16
    assert peak < 1.2 * held + (1 << 16)


def _fields() -> dict[str, Any]:
    return {name: getattr(CONFIG, name) for name in CONFIG.__dataclass_fields__}
