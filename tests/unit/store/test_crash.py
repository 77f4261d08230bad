"""SIGKILL at any moment: what is visible is whole, the next import succeeds, nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint
from server.store import AdapterStore, RejectedAdapterError
from tests.forkserver import context
from tests.forkserver import process as forked
from tests.unit.adapter.checkpoint.adapters import edit_config
from tests.unit.store.conftest import contents, leftovers, write_adapter
from tests.unit.store.crash import work, work_to_step
from tests.unit.store.web import TO_TESTS, FileWeb

ROUNDS = int(os.environ.get("REMIX_CRASH_ROUNDS", "40"))


def ended(process: BaseProcess) -> int | None:
    process.join(30)
    code = process.exitcode
    process.close()
    return code


def check_what_is_visible(root: Path) -> None:
    for folder in (root / "adapters").iterdir():
        assert read_checkpoint(folder).digest == folder.name
        assert len(contents(folder)) == 4
    for folder in (root / "quarantine").iterdir():
        assert json.loads((folder / "reason.json").read_text())["id"] == folder.name


async def recover(root: Path, good: dict[str, Path], bad: Path) -> None:
    """What a restarted server does; `good` maps sources to the folders they are."""
    store = AdapterStore(root, policy=TO_TESTS)
    for source, folder in good.items():
        stored = await store.import_from(source)
        assert contents(stored.folder) == contents(folder)
    with pytest.raises(RejectedAdapterError):
        await store.import_from(str(bad))
    keep = {read_checkpoint(folder).digest for folder in good.values()}
    await store.collect_garbage(keep, min_age_seconds=0)
    assert store.digests() == sorted(keep)
    assert leftovers(root) == []
    check_what_is_visible(root)
    store.close()


@pytest.fixture
def bad(adapter: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "bad"
    shutil.copytree(adapter, folder)
    edit_config(folder, {"peft_type": "LORA"})
    return folder


def test_killed_at_a_random_moment(tmp_path: Path, adapter: Path, bad: Path) -> None:
    kill_at_random(tmp_path, adapter, bad, rounds=ROUNDS)


def kill_at_random(tmp_path: Path, adapter: Path, bad: Path, *, rounds: int) -> None:
    root = tmp_path / "store"
    write_adapter(tmp_path / "remote", seed=1)
    web = FileWeb({f"/a/{name}": d for name, d in contents(tmp_path / "remote").items()})
    good = {str(adapter): adapter, f"{web.url}/a": tmp_path / "remote"}
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    print(f"seed {seed}")  # shown where the test fails
    for _ in range(rounds):
        here, there = context.Pipe(duplex=False)
        process = forked(work, str(root), [*good, str(bad)], there)
        process.start()
        there.close()
        assert here.recv()
        process.join(moments.uniform(0, 0.15))
        process.kill()
        assert ended(process) == -9
        here.close()
        if root.exists():  # or it was killed before its first step
            check_what_is_visible(root)
        if moments.random() < 0.25:  # at other times the next process meets what is left
            asyncio.run(recover(root, good, bad))
    asyncio.run(recover(root, good, bad))
    web.close()


@pytest.mark.parametrize("what", ["import and collect", "bad import"])
def test_killed_before_every_step(tmp_path: Path, adapter: Path, bad: Path, what: str) -> None:
    root = tmp_path / "store"
    source = bad if what == "bad import" else adapter
    step, end = 0, False
    while not end:
        here, there = context.Pipe(duplex=False)
        args = (str(root), str(source), what == "import and collect", step, there)
        process = forked(work_to_step, *args)
        process.start()
        there.close()
        try:
            end = here.recv() == step
        except EOFError:
            end = False
        here.close()
        assert ended(process) == (0 if end else -9)
        if root.exists():
            if (root / "adapters").exists() and (root / "quarantine").exists():
                check_what_is_visible(root)
            asyncio.run(recover(root, {str(adapter): adapter}, bad))
            shutil.rmtree(root)
        step += 1
    assert step > 20
