"""`defaults.json`: read strictly, written back, part of the adapter's identity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint, read_defaults, write_checkpoint
from remix_runtime.adapter.checkpoint.defaults import DEFAULTS_FILE, MAX_BYTES
from remix_runtime.contracts import AdapterDefaults
from tests.unit.adapter.checkpoint.adapters import CONFIG, make_layers, refused

TEMPLATE = "{% for m in messages %}{{ m.content }}|{% endfor %}"
FULL = AdapterDefaults(
    chat_template=TEMPLATE,
    temperature=0.5,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    presence_penalty=-1.0,
    frequency_penalty=1.0,
    repetition_penalty=1.1,
    max_tokens=64,
    stop=("END", "\n\n"),
)


def put(folder: Path, content: Any) -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    (folder / DEFAULTS_FILE).write_bytes(data)


@pytest.mark.parametrize("defaults", [FULL, AdapterDefaults(stop=("é",)), AdapterDefaults(top_k=0)])
def test_what_is_written_is_read(tmp_path: Path, defaults: AdapterDefaults) -> None:
    digest = write_checkpoint(tmp_path / "a", CONFIG, make_layers(), readme="", defaults=defaults)
    checkpoint = read_checkpoint(tmp_path / "a")
    assert checkpoint.defaults == defaults == read_defaults(tmp_path / "a")
    assert checkpoint.digest == digest


def test_defaults_are_part_of_the_identity_and_their_spelling_is_not(folder: Path) -> None:
    bare = read_checkpoint(folder).digest
    put(folder, {"temperature": 0.5, "stop": ["x"]})
    digest = read_checkpoint(folder).digest
    assert digest != bare
    put(folder, b'{ "stop" : ["\\u0078"],\n"top_p": null, "temperature": 5e-1}')
    assert read_checkpoint(folder).digest == digest
    put(folder, {"temperature": 0.5, "stop": ["y"]})
    assert read_checkpoint(folder).digest not in (bare, digest)
    put(folder, {"stop": [], "top_p": None})  # which says nothing
    assert read_checkpoint(folder).digest == bare


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ("not valid JSON",)),
        (b"[]", ("expected a JSON object",)),
        (b'{"top_p": 0.5, "top_p": 0.6}', ("top_p", "twice")),
        (b'{"temperature": NaN}', ("finite",)),
        ({"temperature": 2.5}, ("temperature", "2.5")),
        ({"temperature": True}, ("temperature", "True")),
        ({"top_p": 0}, ("top_p",)),
        ({"top_k": 1.5}, ("top_k", "1.5")),
        ({"max_tokens": 0}, ("max_tokens",)),
        ({"stop": "END"}, ("stop",)),
        ({"stop": [""]}, ("stop.0",)),
        ({"stop": ["a\0"]}, ("stop.0",)),
        ({"stop": ["x"] * 17}, ("stop",)),
        ({"chat_template": "{% for %}"}, ("chat_template", "line 1")),
        ({"chat_template": "x" * 100_001}, ("chat_template",)),
        ({"max_new_tokens": 5}, ("max_new_tokens", "max_tokens")),
        (b" " * (MAX_BYTES + 1), (str(MAX_BYTES),)),
    ],
)
def test_what_is_wrong_is_named(folder: Path, content: Any, parts: tuple[str, ...]) -> None:
    put(folder, content)
    refused(folder, DEFAULTS_FILE, *parts)


def test_the_training_tag_of_a_template_is_known(folder: Path) -> None:
    put(folder, {"chat_template": "{% generation %}{{ messages }}{% endgeneration %}"})
    assert "generation" in (read_defaults(folder).chat_template or "")


def test_a_folder_without_the_file_has_none(folder: Path, tmp_path: Path) -> None:
    assert read_defaults(folder) == AdapterDefaults()
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / DEFAULTS_FILE).symlink_to("nowhere")
    refused(copy, DEFAULTS_FILE, "leads nowhere")
