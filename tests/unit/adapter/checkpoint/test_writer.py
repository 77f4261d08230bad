"""Writing: what is on disk after success, refusal and a kill at every step; the digest."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint import (
    AdapterConfig,
    LayerWeights,
    adapter_digest,
    describe,
    read_checkpoint,
    read_parity,
    write_checkpoint,
)
from remix_runtime.errors import CheckpointError, CheckpointFormatError
from tests.unit.adapter.checkpoint.adapters import (
    BASE,
    CONFIG,
    CONFIG_FILE,
    PARITY_FILE,
    TENSOR_FILE,
    edit_config,
    make_layers,
    make_parity,
    split,
)

# The digest, from the specification alone


def test_golden_digest(tmp_path):
    """Bytes and digest of an adapter of small integers, without any code of the package."""
    layers = {
        "model.layers.0.mlp.up_proj": LayerWeights(
            a_nrD=torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]),
            b_nOr=torch.tensor([[[5.0]], [[6.0]]]),
            router_nD=torch.tensor([[7.0, 8.0], [9.0, 10.0]]),
        )
    }
    config = AdapterConfig(
        base_model_name_or_path="base/é",
        num_experts=2,
        top_k=1,
        r=1,
        routing_weight=0.5,
        target_modules=("up_proj",),
    )
    digest = write_checkpoint(tmp_path / "a", config, layers, readme="")

    key = "base_model.model.model.layers.0.mlp.up_proj.remix_"
    header = {
        "__metadata__": {"format": "pt"},
        f"{key}A.weight": {"dtype": "F32", "shape": [2, 1, 2], "data_offsets": [0, 16]},
        f"{key}B.weight": {"dtype": "F32", "shape": [2, 1, 1], "data_offsets": [16, 24]},
        f"{key}router.weight": {"dtype": "F32", "shape": [2, 2], "data_offsets": [24, 40]},
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = struct.pack("<Q", len(text)) + text + struct.pack("<10f", *range(1, 11))
    canonical = (
        b'{"base_model_name_or_path":"base/\\u00e9","format_version":1,"num_experts":2,'
        b'"peft_type":"REMIX","r":1,"routing_weight":0.5,"target_modules":["up_proj"],'
        b'"task_type":"CAUSAL_LM","top_k":1}'
    )
    assert (tmp_path / "a" / TENSOR_FILE).read_bytes() == file
    assert digest == hashlib.sha256(canonical + file).hexdigest()
    assert digest == "a4d772b2cc20a16c4d94f892ace8fa2262327aba71067219cd4053c9639c9521"


def test_digest_is_the_same_for_the_same_adapter(folder, tmp_path):
    digest = read_checkpoint(folder).digest
    assert len(digest) == 64
    assert write_checkpoint(tmp_path / "b", CONFIG, make_layers(), readme="other") == digest
    unsorted = replace(CONFIG, target_modules=CONFIG.target_modules[::-1])
    shuffled = dict(reversed(make_layers().items()))
    assert write_checkpoint(tmp_path / "c", unsorted, shuffled, readme="") == digest
    edit_config(folder, lambda fields: dict(reversed(fields.items())) | {"inference_mode": True})
    (folder / "README.md").unlink()
    (folder / PARITY_FILE).unlink()
    assert read_checkpoint(folder).digest == digest


def test_digest_differs_for_any_other_adapter(tmp_path):
    layers = make_layers()
    changed = make_layers()
    changed["model.layers.1.mlp.up_proj"].router_nD[2, 3] += 1e-6
    digests = {
        write_checkpoint(tmp_path / "a", CONFIG, layers, readme=""),
        write_checkpoint(tmp_path / "b", CONFIG, changed, readme=""),
        write_checkpoint(tmp_path / "c", replace(CONFIG, top_k=1), layers, readme=""),
        write_checkpoint(tmp_path / "d", replace(CONFIG, routing_weight=0.9), layers, readme=""),
        write_checkpoint(tmp_path / "e", CONFIG, layers, readme="", dtype=torch.bfloat16),
    }
    assert len(digests) == 5


def test_digest_takes_text_and_tensors_in_this_order():
    assert adapter_digest(CONFIG, b"xy") != adapter_digest(CONFIG, b"x")
    assert adapter_digest(CONFIG, b"xy") != adapter_digest(CONFIG, b"yx")


# What is written


def test_folder_holds_exactly_the_files_of_the_format(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {CONFIG_FILE, TENSOR_FILE, PARITY_FILE, "README.md"}
    assert (folder / "README.md").read_text() == "# test\n"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    header, _ = split((folder / TENSOR_FILE).read_bytes())
    parts = {"A", "B", "router"}
    keys = {f"base_model.model.{m}.remix_{part}.weight" for m in BASE for part in parts}
    assert header.keys() == keys | {"__metadata__"}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux to name open files")
def test_everything_is_synced_and_the_config_is_the_last_file(tmp_path, monkeypatch):
    synced: list[str] = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="", parity=make_parity())
    *files, config, folder, parent = synced
    assert sorted(files) == ["README.md", TENSOR_FILE, PARITY_FILE]
    assert config == CONFIG_FILE
    assert folder.startswith(".a.tmp-")
    assert parent == tmp_path.name


def test_tensors_that_are_views_can_be_written(tmp_path):
    shared = torch.randn(3, 2, 6).transpose(1, 2).contiguous().transpose(1, 2)
    layers = {
        name: replace(w, a_nrD=shared.requires_grad_()) if "down" in name else w
        for name, w in make_layers().items()
    }
    write_checkpoint(tmp_path / "a", CONFIG, layers, readme="")
    found = read_checkpoint(tmp_path / "a").layers
    for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"):
        assert torch.equal(found[name].a_nrD, shared)


def test_parents_are_made(tmp_path):
    write_checkpoint(tmp_path / "x" / "y" / "a", CONFIG, make_layers(), readme="")
    read_checkpoint(tmp_path / "x" / "y" / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.clear(),
        lambda layers: layers.pop("model.layers.0.mlp.up_proj"),
        lambda layers: [w.b_nOr.zero_() for w in layers.values()],
        lambda layers: layers["model.layers.0.mlp.up_proj"].router_nD.fill_(float("nan")),
        lambda layers: layers.update({"model.head": next(iter(layers.values()))}),
    ],
)
def test_what_could_not_be_read_is_not_written(folder, tmp_path, change):
    layers = make_layers(seed=1)
    change(layers)
    before = read_checkpoint(folder).digest
    if len(layers) == len(BASE) - 1:  # well formed on its own, wrong for its base
        write_checkpoint(tmp_path / "new", CONFIG, layers, readme="")
        with pytest.raises(CheckpointError, match="no tensors for"):
            read_checkpoint(tmp_path / "new", base=BASE)
        return
    for place in (folder, tmp_path / "new"):
        with pytest.raises(CheckpointFormatError):
            write_checkpoint(place, CONFIG, layers, readme="")
    assert read_checkpoint(folder).digest == before
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_bad_parity_is_not_written(tmp_path):
    parity = replace(make_parity(), route_tolerance=float("nan"))
    with pytest.raises(CheckpointFormatError, match="route_tolerance"):
        write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="", parity=parity)
    assert list(tmp_path.iterdir()) == []


# Replacing


def test_checkpoint_is_replaced_as_a_whole(folder):
    (folder / "old.png").touch()
    digest = write_checkpoint(folder, CONFIG, make_layers(seed=5), readme="new")
    assert read_checkpoint(folder).digest == digest
    assert read_parity(folder) is None
    assert not (folder / "old.png").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="")
    read_checkpoint(tmp_path / "a")


def test_anything_else_is_left_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / CONFIG_FILE).write_text('{"peft_type": "LORA"}')
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    link.symlink_to(home)
    for place in (home, lora, file, link):
        with pytest.raises(CheckpointFormatError, match="expected a free name"):
            write_checkpoint(place, CONFIG, make_layers(), readme="")
    assert (home / "thesis.txt").read_text() == "years of work"
    assert (lora / CONFIG_FILE).exists()
    assert link.is_symlink()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "rng_state.pth", "training_args.bin", "checkpoint-9/x.ckpt", "link"]
)
def test_a_trainers_state_is_not_thrown_away(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (folder / name).symlink_to("nowhere")
    else:
        (folder / name).write_bytes(b"hours of work")
    with pytest.raises(CheckpointFormatError, match=f"{name} is there.*expected a free name"):
        write_checkpoint(folder, CONFIG, make_layers(seed=5), readme="new")
    assert os.path.lexists(folder / name)


def test_failed_rename_puts_the_old_one_back(folder, monkeypatch):
    before = read_checkpoint(folder).digest
    rename = Path.rename

    def failing(self, target):
        if ".tmp-" in self.name:
            raise OSError("disk on fire")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="on fire"):
        write_checkpoint(folder, CONFIG, make_layers(seed=5), readme="")
    assert read_checkpoint(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def write_and_die(folder: Path, step: int) -> bool:
    """Replaces `folder` in a child process that dies just before its `step`-th fsync or rename.

    Returns whether it ended by itself instead.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            left = iter(range(step))
            fsync, rename = os.fsync, Path.rename

            def tick() -> None:
                if next(left, None) is None:
                    os._exit(9)

            os.fsync = lambda fd: (tick(), fsync(fd))
            Path.rename = lambda self, target: (tick(), rename(self, target))
            write_checkpoint(folder, CONFIG, make_layers(seed=5), readme="new")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 9)
    return code == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("replacing", [False, True])
def test_kill_leaves_the_old_one_or_the_new_one_or_none(tmp_path, replacing):
    states: list[str] = []
    new = write_checkpoint(tmp_path / "new", CONFIG, make_layers(seed=5), readme="new")
    for step in range(20):
        folder = tmp_path / str(step) / "adapter"
        old = write_checkpoint(folder, CONFIG, make_layers(), readme="") if replacing else None
        ended = write_and_die(folder, step)
        if folder.exists():
            states.append({old: "old", new: "new"}[read_checkpoint(folder).digest])
        else:
            states.append("none")
            if replacing:  # between the two renames: the old one is whole beside its name
                (kept,) = folder.parent.glob(".adapter.old-*")
                assert read_checkpoint(kept).digest == old
        # Whatever was left, the next write works.
        assert write_checkpoint(folder, CONFIG, make_layers(seed=5), readme="new") == new
        if ended:
            break
    assert ended
    assert states[-1] == "new"
    assert states[0] == ("old" if replacing else "none")
    assert states.count("none") == (1 if replacing else len(states) - states.count("new"))
    assert len(states) >= 6


# What it is, for people


def test_description(folder):
    found = describe(read_checkpoint(folder))
    assert (found.num_layers, found.num_experts, found.top_k, found.r) == (4, 3, 2, 2)
    assert found.layers_by_target == {"down_proj": 2, "up_proj": 2}
    assert found.scaling == "rslora"  # 2 / sqrt(2 * 2)
    experts = sum(3 * 2 * (d + o) for o, d in BASE.values())
    routers = sum(3 * d for _, d in BASE.values())
    assert found.num_parameters == experts + routers
    assert found.num_active_parameters == experts * 2 // 3 + routers
    assert found.num_bytes == 4 * found.num_parameters
    assert found.digest == read_checkpoint(folder).digest


@pytest.mark.parametrize(("weight", "scaling"), [(0.5, "lora"), (0.7, None)])
def test_description_names_the_rule_of_the_weight(folder, weight, scaling):
    edit_config(folder, {"routing_weight": weight})
    assert describe(read_checkpoint(folder)).scaling == scaling
