"""Wrong adapters, and paths that are none: one line that is no internal error, and not 0."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from remix_runtime.adapter.checkpoint import write_checkpoint
from tests.layouts import BROKEN
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.unit.adapter.checkpoint.adapters import (
    CONFIG_FILE,
    PARITY_FILE,
    TENSOR_FILE,
    edit_config,
    edit_header,
    edit_tensors,
    join,
)
from tests.unit.told import told

Damage = Callable[[Path], object]


def fields(**changes: object) -> Damage:
    return lambda folder: edit_config(folder, changes)


def config(content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / CONFIG_FILE).write_bytes(data)


def tensors(content: bytes) -> Damage:
    return lambda folder: (folder / TENSOR_FILE).write_bytes(content)


def every_tensor(change: Callable[[torch.Tensor], torch.Tensor], part: str = "remix_B") -> Damage:
    def edit(found: dict[str, torch.Tensor]) -> None:
        found.update({name: change(t).contiguous() for name, t in found.items() if part in name})

    return lambda folder: edit_tensors(folder, edit)


def header(change: Callable[[dict[str, object]], object]) -> Damage:
    return lambda folder: edit_header(folder, change)


def cut(length: int) -> Damage:
    def shorten(folder: Path) -> None:
        data = (folder / TENSOR_FILE).read_bytes()
        (folder / TENSOR_FILE).write_bytes(data[:length])

    return shorten


def twice(folder: Path) -> None:
    text = (folder / CONFIG_FILE).read_text()
    (folder / CONFIG_FILE).write_text('{"r": 4,' + text.lstrip()[1:])


def first_entry(**changes: object) -> Damage:
    def change(found: dict[str, object]) -> None:
        name = next(name for name in found if name != "__metadata__")
        entry = found[name]
        assert isinstance(entry, dict)
        entry.update(changes)

    return header(change)


def without(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


DAMAGES: Mapping[str, Damage] = {
    "an empty folder": lambda folder: [path.unlink() for path in folder.iterdir()],
    "no config": without(CONFIG_FILE),
    "no tensors": without(TENSOR_FILE),
    "empty config": config(""),
    "no fields": config("{}"),
    "a list": config("[]"),
    "a number": config("1e999"),
    "not UTF-8": config(b'{"peft_type": "\xff\xfe"}'),
    "UTF-16": config('{"peft_type": "REMIX"}'.encode("utf-16")),
    "NUL bytes": config(bytes(100)),
    "endless nesting": config('{"a":' * 200_000),
    "a key twice": twice,
    "a LoRA": fields(peft_type="LORA"),
    "peft_type is a list": fields(peft_type=["REMIX"]),
    "a later version": fields(format_version=2),
    "NaN": config('{"peft_type": "REMIX", "routing_weight": NaN}'),
    "a huge number": fields(num_experts=10**4000),
    "a huge weight": fields(routing_weight=10**400),
    "a number too long": config('{"peft_type": "REMIX", "r": ' + "9" * 9000 + "}"),
    "experts are text": fields(num_experts="4"),
    "no experts": fields(num_experts=0),
    "more active than there are": fields(top_k=5),
    "negative rank": fields(r=-1),
    "rank is true": fields(r=True),
    "another rank": fields(r=5),
    "no target": fields(target_modules=[]),
    "target is an object": fields(target_modules={"down_proj": {}}),
    "target is a pattern": fields(target_modules=[".*"]),
    "target with a line end": fields(target_modules=["down_proj\n"]),
    "another target": fields(target_modules=["q_proj"]),
    "base with a line end": fields(base_model_name_or_path="a\nb"),
    "base is null": fields(base_model_name_or_path=None),
    "remote code": fields(auto_mapping={"base_model_class": "X", "parent_library": "os"}),
    "unknown field": fields(use_dora=True),
    "revision is a number": fields(revision=7),
    "empty tensors": tensors(b""),
    "seven bytes": tensors(b"1234567"),
    "half of it": cut(700),
    "one byte less": lambda folder: cut((folder / TENSOR_FILE).stat().st_size - 1)(folder),
    "one byte more": lambda folder: tensors((folder / TENSOR_FILE).read_bytes() + b"0")(folder),
    "a header of 2^64 bytes": tensors(b"\xff" * 64),
    "a header of 2^40 bytes": tensors(struct.pack("<Q", 1 << 40) + b"{}"),
    "a header that is no JSON": tensors(join(b"{{{{", b"")),
    "a header that is a list": tensors(join(b"[]", b"")),
    "a header that is not UTF-8": tensors(join(b'{"\xff": 1}', b"")),
    "a deep header": tensors(join(b'{"a":' * 100_000, b"")),
    "no tensor at all": tensors(save({})),
    "a pickle by another name": tensors(pickle.dumps({"a": 1})),
    "a zip by another name": tensors(b"PK\x03\x04" + bytes(400)),
    "random bytes": tensors(os.urandom(4096)),
    "NaN in a tensor": every_tensor(lambda t: t * float("nan")),
    "infinity in a tensor": every_tensor(lambda t: t / 0, "remix_router"),
    "no effect": every_tensor(torch.zeros_like),
    "overflow": every_tensor(lambda t: t * 1e38),
    "integers": every_tensor(lambda t: t.int()),
    "float64": every_tensor(lambda t: t.double()),
    "one dimension less": every_tensor(lambda t: t[0]),
    "one row less": every_tensor(lambda t: t[:, 1:]),
    "no rows": every_tensor(lambda t: t[:, :0]),
    "a scalar": every_tensor(lambda t: t.sum()),
    "a layer too few": lambda folder: edit_tensors(folder, lambda t: t.pop(min(t))),
    "a layer too many": lambda folder: edit_tensors(
        folder, lambda t: t.update({min(t).replace("layers.0", "layers.9"): t[min(t)].clone()})
    ),
    "a name with a line end": header(lambda h: h.update({"a\nb": h.pop(min(h))})),
    "unknown dtype": first_entry(dtype="F8_E4M3"),
    "dtype is a number": first_entry(dtype=4),
    "shape is text": first_entry(shape="4"),
    "negative shape": first_entry(shape=[-1, 4]),
    "huge shape": first_entry(shape=[1 << 40, 1 << 40]),
    "offsets outside": first_entry(data_offsets=[0, 1 << 50]),
    "offsets backwards": first_entry(data_offsets=[9, 4]),
    "offsets are missing": first_entry(data_offsets=None),
    "parity is empty": lambda folder: (folder / PARITY_FILE).write_bytes(b""),
    "parity is a folder": lambda folder: (folder / PARITY_FILE).mkdir(),
    "parity is something else": lambda folder: (folder / PARITY_FILE).write_bytes(
        (folder / TENSOR_FILE).read_bytes()
    ),
    **{f"config: {kind}": lambda f, b=b: b(f / CONFIG_FILE) for kind, (b, _) in BROKEN.items()},
    **{f"tensors: {kind}": lambda f, b=b: b(f / TENSOR_FILE) for kind, (b, _) in BROKEN.items()},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    made = random_checkpoint(tiny_model("llama"), target_modules=("down_proj",))
    write_checkpoint(tmp_path / "adapter", made.config, made.layers, readme="random")
    return tmp_path / "adapter"


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_adapters(
    capsys: pytest.CaptureFixture[str], base: Path, adapter: Path, damage: str
) -> None:
    DAMAGES[damage](adapter)
    reason = told(capsys, "check", adapter, "--base", base, code=1)
    told(capsys, "eval", adapter, adapter / "rows.jsonl", "--base", base, code=1)
    assert any(name in reason for name in (CONFIG_FILE, TENSOR_FILE, PARITY_FILE))


@pytest.mark.parametrize(
    "damage", ["an empty folder", "a key twice", "NaN in a tensor", "half of it", "tensors: loop"]
)
def test_damaged_adapters_are_served_by_none(
    capsys: pytest.CaptureFixture[str], base: Path, adapter: Path, damage: str
) -> None:
    DAMAGES[damage](adapter)
    serve = ("serve", "--base", base, "--port", 0, "--threads", 1)
    reason = told(capsys, *serve, "--adapter", f"mine={adapter}", code=1)
    assert f"adapter 'mine' in {adapter}: " in reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", [".", CONFIG_FILE, TENSOR_FILE])
def test_unreadable_adapters(capsys: pytest.CaptureFixture[str], adapter: Path, name: str) -> None:
    (adapter / name).chmod(0)
    try:
        assert "Permission denied" in told(capsys, "check", adapter, code=1)
    finally:
        (adapter / name).chmod(0o700)


@pytest.mark.parametrize(
    "folder", ["", "nowhere", "a\nb", "a\0b", "x" * 300, "\udcff", "/dev/null", "/proc/self/mem"]
)
def test_paths_that_are_no_adapter(capsys: pytest.CaptureFixture[str], folder: str) -> None:
    told(capsys, "check", folder)
