"""Folders as people have them at every entrance of the product: the operator's own are served
whatever their layout is, and what is imported must lie under the import root."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint, base_shapes
from remix_runtime.adapter.parity import record_parity
from remix_runtime.cli import build_app
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.vllm.host import read_layers
from remix_runtime.errors import CheckpointFormatError, ConfigError
from server.app import create_app
from server.live.access import SINGLE_USER
from server.live.single_user import parse_adapters
from server.settings import ServerSettings
from tests.layouts import BROKEN, LAYOUTS
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.unit.admin.harness import API, Admin, administering


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Admin]:
    async with administering(tmp_path) as admin:
        yield admin


def adapter(place: Path) -> str:
    """Writes an adapter with its parity file; returns its digest."""
    model = tiny_model("llama")
    checkpoint = random_checkpoint(model)
    parity = record_parity(model, attach_checkpoint(model, checkpoint), [[1, 2, 3]])
    return write_checkpoint(
        place, checkpoint.config, checkpoint.layers, readme="random", parity=parity
    )


async def remix(*arguments: object) -> Result:
    """Runs a command in a thread: it may have an event loop of its own."""
    texts = [str(argument) for argument in arguments]
    return await asyncio.to_thread(lambda: CliRunner().invoke(build_app(), texts))


async def printed(*arguments: object) -> Any:
    result = await remix(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def served(base: Path, folder: Path) -> str:
    """The digest under which `remix serve --adapter mine=FOLDER` serves."""
    engine = EmbeddedEngine(EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 20, threads=1))
    app = create_app(engine, ServerSettings(), parse_adapters([f"mine={folder}"]))
    async with app.router.lifespan_context(app):
        return str(app.state.services.sets.live(SINGLE_USER).adapters["mine"])


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_the_operators_own_folder(
    admin: Admin, base: Path, tmp_path: Path, layout: str
) -> None:
    digest = adapter(admin.root / "adapter")
    folder = LAYOUTS[layout](admin.root / "adapter")
    assert await served(base, folder) == digest
    assert (await printed("check", folder))["digest"] == digest
    checked = await printed("check", folder, "--base", base)
    assert checked["digest"] == digest
    assert checked["parity"].startswith("1 prompts replayed")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    scores = await printed("eval", folder, tmp_path / "rows.jsonl", "--base", base)
    assert scores["adapter"]["loss"] != scores["base"]["loss"]
    assert read_layers(folder, base_shapes(tiny_model("llama")), max_rows=64)[0].digest == digest
    for source in (str(folder), str(folder.relative_to(admin.root))):
        imported = await admin.client.post(f"{API}/adapters", json={"source": source})
        assert imported.json()["digest"] == digest


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_no_link_leads_an_import_out_of_its_root(
    admin: Admin, tmp_path: Path, layout: str
) -> None:
    """Only the folder itself comes under the root, by a link or with its links."""
    adapter(tmp_path / "elsewhere" / "adapter")
    folder = LAYOUTS[layout](tmp_path / "elsewhere" / "adapter")
    (admin.root / "linked").symlink_to(folder)
    copied = admin.root / "copied"
    copied.mkdir()
    for path in folder.iterdir():
        (copied / path.name).symlink_to(path)
    for source in ("linked", "copied"):
        answer = await admin.client.post(f"{API}/adapters", json={"source": source})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (422, "source_refused")
        assert "expected a folder under" in error["message"] or "a link out of" in error["message"]


@pytest.mark.parametrize("kind", BROKEN)
async def test_what_is_no_file_is_refused_everywhere(admin: Admin, base: Path, kind: str) -> None:
    breaks, reason = BROKEN[kind]
    folder = admin.root / "adapter"
    adapter(folder)
    breaks(folder / "adapter_model.safetensors")
    for arguments in (
        ("check", folder),
        ("check", folder, "--base", base),
        ("eval", folder, folder / "rows.jsonl", "--base", base),
    ):
        result = await remix(*arguments)
        assert result.exit_code == 1
        assert "adapter_model.safetensors: " in result.stderr
        assert reason in result.stderr
        assert result.stderr.count("\n") == 1
    with pytest.raises(ConfigError, match=reason):
        await served(base, folder)
    with pytest.raises(CheckpointFormatError, match=reason):
        read_layers(folder, base_shapes(tiny_model("llama")), max_rows=64)
    answer = await admin.client.post(f"{API}/adapters", json={"source": "adapter"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (422, "source_refused")
    # What a device is called does not matter where it lies outside of the root anyway.
    assert reason in error["message"] or "a link out of" in error["message"]


async def test_eval_asks_for_the_base_of_a_revision(admin: Admin, base: Path) -> None:
    """A path or hub id alone may stand for other weights than the revision had."""
    folder = admin.root / "adapter"
    adapter(folder)
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "revision": "v2"}))
    (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    result = await remix("eval", folder, folder / "rows.jsonl")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "revision 'v2' of 'tiny', expected --base" in result.stderr
    assert (await printed("eval", folder, folder / "rows.jsonl", "--base", base))["base"]
