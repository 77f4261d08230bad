"""Wrong recipes, rows, files and options: one line that names what is wrong, whatever it is."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.cli import run
from tests.models import random_checkpoint, tiny_model
from tests.unit.training.conftest import ROWS, write_rows
from training.config import load_config
from training.run import run_training

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")

LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
BOMB = "a: &a [x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
Settings = dict[Any, Any]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is no folder is not looked for in the network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def recipe(folder: Path, base: Path, settings: Settings) -> Path:
    path = folder / "recipe.yaml"
    small = {"steps": 1, "threads": 1, "num_experts": 2, "top_k": 1, "r": 1, "selections": 2}
    whole = {"base": str(base), "data": "rows.jsonl", "output": "out", **small, **settings}
    path.write_text(yaml.safe_dump(whole))
    return path


def refusal(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that fails as it should."""
    assert run([str(word) for word in words]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "internal error" not in lines[0]
    assert len(lines[0]) < 1000
    return lines[0]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"data": "empty"}, "empty: cannot be read"),
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read: No such file"),
        ({"data": "rows.jsonl/rows"}, "Not a directory"),
        ({"data": "x" * 300}, "File name too long"),
        ({"data": "a\0b"}, "data: found"),
        ({"data": "/dev/null"}, "found a device"),
        ({"data": ["rows.jsonl"]}, "data: found ['rows.jsonl']"),
        ({"eval_data": "nowhere.jsonl"}, "nowhere.jsonl: cannot be read"),
        ({"eval_data": "empty"}, "empty: cannot be read"),
        ({"output": "rows.jsonl"}, "output: "),
        ({"output": "rows.jsonl/out"}, "output: "),
        ({"output": "x" * 300}, "output: "),
        ({"output": "/proc/nothing"}, "output: "),
        ({"base": ""}, "base: found ''"),
        ({"base": "a\0b"}, "base: found"),
        ({"base": "\ud800"}, "base: found"),
        ({"base": 7}, "base: found 7"),
        ({"base_name": ""}, "base_name: found ''"),
        ({"base_name": "a\nb"}, "base_model_name_or_path"),
        ({"target_modules": ["nothing"]}, "nothing"),
        ({"target_modules": [["up_proj"]]}, "target_modules.0: found"),
        ({"target_modules": ["up_proj", "up_proj"]}, "expected every name once"),
        ({"target_modules": ["lm\0head"]}, "target_modules.0: found"),
        ({"num_experts": 1 << 40}, "num_experts"),
        ({"num_experts": 300}, "num_experts"),
        ({"r": 1 << 40}, "r"),
        ({"top_k": 3}, "top_k: found 3, expected at most num_experts = 2"),
        ({"max_length": 257}, "max_length: found 257, expected at most 256"),
        ({"max_length": 1 << 70}, "max_length: found 1180591620717411303424, expected at most 256"),
        ({"max_length": 3}, "expected at most max_length = 3"),
        ({"steps": 0}, "steps: found 0"),
        ({"steps": 1.5}, "steps: found 1.5"),
        ({"steps": "many"}, "steps: found 'many'"),
        ({"seed": -1}, "seed: found -1"),
        ({"device": "tpu"}, "device: found 'tpu'"),
        ({"expert_learning_rate": ".inf"}, "expert_learning_rate: found"),
        ({"expert_learning_rate": 10**400}, "expert_learning_rate: found"),
        ({"selections": 1 << 40}, "selections: found 1099511627776"),
        ({"too_long": "cut"}, "too_long: found 'cut'"),
        ({"learning_rate": 1}, "unknown setting 'learning_rate'"),
        ({"x" * 100_000: 1}, "unknown setting"),
        ({3: 1}, "unknown setting 3"),
        ({"method": "lora", "credit": "causal"}, "credit: found with method lora"),
        ({"threads": 0}, "threads: found 0"),
        ({"base_dtype": "int8"}, "base_dtype: found 'int8'"),
        ({"gradient_checkpointing": "often"}, "gradient_checkpointing: found 'often'"),
        ({"cache_trunk": True}, "cache_trunk: found true where no block is below the adapter"),
        ({"columns": {"question": "prompt"}}, "columns.question"),
        ({"columns": {"prompt": "question"}}, "rows.jsonl:1: columns: prompt: found"),
        ({"split": "train"}, "split: found 'train' with"),
        ({"eval_split": "test"}, "split: found 'test' with"),
        ({"epochs": 1}, "epochs: found beside steps"),
        ({"target_modules": "up_proj"}, "target_modules: found 'up_proj', expected a list"),
        ({"target_modules": ".*head"}, "found the pattern '.*head', which matches no whole name"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_a_wrong_recipe(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_base: Path,
    settings: Settings,
    named: str,
) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "empty").mkdir()
    path = recipe(tmp_path, tiny_base, settings)
    assert named in refusal(capsys, "train", path)
    left = {"recipe.yaml", "rows.jsonl", "empty", "out"}
    assert {entry.name for entry in tmp_path.iterdir()} <= left


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_base: Path
) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    path = recipe(tmp_path, tiny_base, {"device": "cuda"})
    assert "device: found cuda" in refusal(capsys, "train", path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "found NoneType, expected a mapping"),
        ("base: [", "no valid YAML"),
        ("base: x\nbase: y\n", "twice"),
        (f"{BOMB}data: *i\n", "unknown setting"),
        (BOMB.replace("a: &a", "base: &a", 1), "unknown setting"),
        ("base: &a [*a]\ndata: x\noutput: y\n", "base: found"),
        ("\ufeff- a", "found list"),
        ("!!python/object:os.system {}", "no valid YAML"),
        ("base: \t x", ""),
        ("data: rows.jsonl\noutput: out\n", "base: found nothing"),
    ],
    ids=lambda text: text[:20],
)
def test_a_wrong_recipe_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, named: str
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    assert named in refusal(capsys, "train", path)


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "recipe.yaml", "--resume", "--overwrite"],
        ["train", "nowhere.yaml"],
        ["train", "."],
        ["train", "recipe.yaml", "--steps", "3"],
        ["eval"],
        ["eval", "adapter"],
        ["eval", "nowhere", "rows.jsonl"],
        ["eval", ".", "rows.jsonl"],
        ["eval", "adapter", "nowhere.jsonl"],
        ["eval", "adapter", "."],
        ["eval", "adapter", "recipe.yaml"],
        ["eval", "adapter", "rows.jsonl", "--base", "nowhere"],
        ["eval", "adapter", "rows.jsonl", "--base", ""],
        ["eval", "adapter", "rows.jsonl", "--base", "adapter"],
        ["eval", "adapter", "rows.jsonl", "--limit", "0"],
        ["eval", "adapter", "rows.jsonl", "--batch-size", "none"],
        ["eval", "adapter", "rows.jsonl", "--max-length", "1"],
        ["eval", "adapter", "rows.jsonl", "--max-length", "257"],
        ["eval", "adapter", "rows.jsonl", "--max-length", "4"],
    ],
    ids=" ".join,
)
def test_wrong_options(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_base: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
) -> None:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    recipe(tmp_path, tiny_base, {})
    checkpoint = random_checkpoint(tiny_model("llama"))
    config = checkpoint.config
    write_checkpoint(tmp_path / "adapter", config, checkpoint.layers, readme="")
    monkeypatch.chdir(tmp_path)
    base = [] if "--base" in words or "rows.jsonl" not in words else ["--base", tiny_base]
    refusal(capsys, *words, *base)


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "found no rows"),
    "blank lines": (b"\n \n\r\n\t\n", "found no rows"),
    "only a mark": (b"\xef\xbb\xbf", "found no rows"),
    "a mark in the middle": (LINES.encode() + b"\xef\xbb\xbf" + LINES.encode(), ":13: "),
    "two marks": (b"\xef\xbb\xbf" * 2 + LINES.encode(), ":1: "),
    "UTF-16": (LINES.encode("utf-16"), "found text in UTF-16"),
    "UTF-16 without a mark": (LINES.encode("utf-16-be"), "found text in UTF-16"),
    "UTF-32": (LINES.encode("utf-32"), "found text in UTF-32"),
    "Latin-1": (LINES.encode() + '{"prompt": "é"}'.encode("latin-1"), ":13: found bytes"),
    "gzip": (gzip.compress(LINES.encode()), "found a gzip file"),
    "zip": (b"PK\x03\x04\x14\0", "found a zip file"),
    "Parquet": (b"PAR1\x15\x04", "found a Parquet file"),
    "one list": (json.dumps(ROWS).encode(), ":1: expected a JSON object, found a list"),
    "JSON over lines": (json.dumps(ROWS[0], indent=1).encode(), ":1: expected one JSON object"),
    "two in a line": (LINES.replace("\n", " ", 1).encode(), ":1: expected one JSON object"),
    "old line ends": (LINES.replace("\n", "\r").encode(), ":1: expected one JSON object"),
    "half a line": (LINES.encode()[:-9], ":12: expected one JSON object"),
    "NUL": (b'{"prompt": "a\0b"}\n', ":1: "),
    "NULs at the end": (LINES.encode() + b"\0" * 50, ":13: "),
    "deep": (b'{"prompt": ' + b"[" * 100_000 + b"\n", ":1: "),
    "a key twice": (b'{"prompt": "a", "completion": "b", "prompt": "c"}', ":1: .*'prompt' twice"),
    "a mark within": (
        b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}',
        ":2: .*found a byte order mark",
    ),
    "a key twice inside": (
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        "'content' twice",
    ),
    "a number": (b"7\n", "found a number"),
    "no object": (b"null\n", "found null"),
    "CSV": (b"prompt,completion\na,b\n", ":1: expected one JSON object"),
    "other keys": (
        b'{"question": "a", "answer": "b"}\n',
        ":1: found .question., .answer., expected prompt and completion",
    ),
}


@pytest.mark.parametrize("as_setting", ["data", "eval_data"])
@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_of_rows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_base: Path, name: str, as_setting: str
) -> None:
    content, named = FILES[name]
    write_rows(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "wrong.jsonl").write_bytes(content)
    line = refusal(capsys, "train", recipe(tmp_path, tiny_base, {as_setting: "wrong.jsonl"}))
    assert re.search(rf"wrong\.jsonl.*{named}|{named}", line), line
    assert not (tmp_path / "out").exists()


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, _pipe, _loop, _dangling])
def test_rows_that_are_no_file(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_base: Path,
    make: Callable[[Path], None],
) -> None:
    make(tmp_path / "rows.jsonl")
    assert "rows.jsonl: " in refusal(capsys, "train", recipe(tmp_path, tiny_base, {}))


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n"),
        "\n\n" + LINES.replace("\n", "\n\n") + "  ",
        LINES.rstrip("\n"),
        "\ufeff\r\n" + LINES.rstrip("\n"),
        LINES.replace("->", "\u2028\u2029\x85->"),
    ],
    ids=["mark", "CRLF", "blank lines", "no last line end", "all of them", "Unicode line ends"],
)
def test_files_as_people_have_them(tmp_path: Path, tiny_base: Path, content: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content.encode())
    path = recipe(tmp_path, tiny_base, {})
    result = run_training(load_config(path))
    assert result.adapter is not None
    assert "12 rows" in (result.adapter / "README.md").read_text()
