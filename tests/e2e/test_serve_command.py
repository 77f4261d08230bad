"""`remix serve` on a tiny base: it serves, it drains, and it refuses bad adapters in one line."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.adapter.checkpoint.parity_file import emit_parity
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.cli import build_app
from tests.models import random_checkpoint, save_tiny_base, tiny_model

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    checkpoint = random_checkpoint(tiny_model("llama"))
    write_checkpoint(tmp_path / "good", checkpoint.config, checkpoint.layers, readme="random")
    return tmp_path / "good"


async def test_process_serves_drains_and_ends_with_0(base: Path, adapter: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from remix_runtime.cli import main; main()", "serve"),
        *("--base", str(base), "--adapter", f"good={adapter}", "--port", "0", "--threads", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    first = (await process.stdout.readline()).decode()
    hint = (await process.stdout.readline()).decode()
    assert first.startswith("Serving tiny, good at http://127.0.0.1:")
    # The printed line works as it stands.
    curl = await asyncio.create_subprocess_shell(
        hint.removeprefix("Try: ").replace("curl ", "curl -s ", 1), stdout=subprocess.PIPE
    )
    answer = json.loads((await curl.communicate())[0])
    assert answer["model"] == "good"
    assert answer["usage"]["completion_tokens"] > 0
    async with httpx.AsyncClient(base_url=first.split()[-1], timeout=120) as client:
        body = {"model": "good", "prompt": "a", "max_tokens": 200, "ignore_eos": True}
        options = {"stream": True, "stream_options": {"include_usage": True}}
        async with client.stream("POST", "/v1/completions", json=body | options) as answer:
            lines = answer.aiter_lines()
            await anext(lines)
            process.send_signal(signal.SIGTERM)
            events = [line async for line in lines if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2].removeprefix("data: "))["usage"]["completion_tokens"] == 200
    _, errors = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in errors


def edit_tensors(folder: Path, edit: Callable[[torch.Tensor], torch.Tensor], part: str) -> None:
    tensors = load_file(folder / TENSORS)
    changed = {name: edit(t) if part in name else t for name, t in tensors.items()}
    save_file(changed, folder / TENSORS)


def truncate(folder: Path) -> None:
    content = (folder / TENSORS).read_bytes()
    (folder / TENSORS).write_bytes(content[: len(content) // 2])


def scramble(folder: Path) -> None:
    (folder / TENSORS).write_bytes(os.urandom(4096))


def use_pickle(folder: Path) -> None:
    (folder / TENSORS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def link_to_nowhere(folder: Path) -> None:
    (folder / TENSORS).rename(folder.parent / "gone")
    (folder / TENSORS).symlink_to(folder.parent / "nowhere")


def replay_differs(folder: Path) -> None:
    edit_tensors(folder, lambda t: t * 2, "remix_A")
    model = tiny_model("llama")
    other = random_checkpoint(model, seed=7)
    parity = record_parity(model, attach_checkpoint(model, other), [[1, 2, 3]])
    (folder / "parity.safetensors").write_bytes(emit_parity(parity))


def break_config(folder: Path) -> None:
    (folder / CONFIG).write_text("{")


BAD: dict[str, Callable[[Path], None]] = {
    "missing": shutil.rmtree,
    "truncated": truncate,
    "scrambled": scramble,
    "pickle": use_pickle,
    "link": link_to_nowhere,
    "parity": replay_differs,
    "config": break_config,
    "shape": lambda folder: edit_tensors(folder, lambda t: t[:, :-1].contiguous(), "remix_A"),
    "NaN": lambda folder: edit_tensors(folder, lambda t: t * float("nan"), "remix_B"),
    "zero effect": lambda folder: edit_tensors(folder, torch.zeros_like, "remix_B"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_adapter_is_one_line(
    base: Path, adapter: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = adapter.parent / "bad"
    shutil.copytree(adapter, bad)
    BAD[kind](bad)
    app = build_app(entry_points(group="remix.commands", name="serve"))
    options = ["--base", str(base), "--port", "0", "--adapter", f"good={adapter}"]
    result = CliRunner().invoke(app, ["serve", *options, "--adapter", f"bad={bad}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: adapter 'bad' in {bad}: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert result.stdout == ""
    # The log goes to the same terminal.
    assert [record.getMessage() for record in caplog.records if "failed" in record.message] == []


def test_bad_base_is_one_line(tmp_path: Path) -> None:
    app = build_app(entry_points(group="remix.commands", name="serve"))
    result = CliRunner().invoke(app, ["serve", "--base", str(tmp_path), "--port", "0"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
