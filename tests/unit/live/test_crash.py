"""SIGKILL at any moment of imports and swaps: a restarted server has the old set or the new one,
all that is referenced is there, and nothing else stays on the disk."""

from __future__ import annotations

import asyncio
import json
import os
import random
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint
from tests.forkserver import context
from tests.forkserver import process as forked
from tests.unit.live import crash
from tests.unit.live.crash import NAMES, TENANT, node
from tests.unit.store.conftest import write_adapter


async def check_after_a_kill(url: str, root: Path) -> tuple[int, str | None]:
    """What a restarted server must find; its revision and the adapter of its set."""
    async with node(url, root) as server:
        wanted = await server.directory.current_set(TENANT)
        live = server.sets.live(TENANT)
        assert (live.revision, live.adapters) == (wanted.revision, wanted.adapters)
        adapters = set(live.adapters.values())
        assert len(adapters) <= 1, "a mixture of two sets"
        assert set(live.adapters) in (set(), set(NAMES))
        registered = {record.digest for record in await server.directory.adapters()}
        assert adapters <= registered
        for digest in registered:
            assert read_checkpoint(server.store.folder(digest)).digest == digest
        for digest in adapters:  # it can be served
            await server.adapters.load(digest)
        await server.collect()
        assert set(server.store.digests()) == registered
        # Partial downloads may be continued; what no process works on goes with its age.
        assert os.listdir(root / "incoming") in ([], ["lock"])
        revisions = await server.directory.revisions(TENANT, limit=1_000_000)
        assert [r.revision for r in revisions] == list(range(len(revisions), 0, -1))
        told = [
            (row.detail["revision"], row.detail["adapters"])
            for row in await server.directory.audit(tenant=TENANT, limit=1_000_000)
            if row.action.startswith("set.")
        ]
        assert told == [(r.revision, r.adapters) for r in revisions]
        return live.revision, next(iter(adapters), None)


def told(messages: Connection) -> list[int]:
    """What a process told before it was killed; its last word may be cut."""
    found = []
    with closing(messages), suppress(EOFError):
        while True:
            found.append(messages.recv())
    return found


async def make_tenant(url: str, root: Path) -> None:
    async with node(url, root) as server:
        await server.directory.create_tenant(TENANT, actor="test")


def kill_at_random(url: str, tmp_path: Path, rounds: int) -> None:
    root, sources = tmp_path / "store", [tmp_path / f"adapter-{i}" for i in range(3)]
    for seed, source in enumerate(sources):
        write_adapter(source, seed=seed)
    asyncio.run(make_tenant(url, root))
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")  # shown where the test fails
    seen = []
    for number in range(rounds):
        here, there = context.Pipe(duplex=False)
        process = forked(
            crash.work, url, str(root), [str(s) for s in sources], seed + number, there
        )
        process.start()
        there.close()
        assert here.recv()
        process.join(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        assert process.exitcode == -9
        written = told(here)
        seen.append(asyncio.run(check_after_a_kill(url, root)))
        assert seen[-1][0] >= max(written, default=0), "a revision that was written is lost"
    revisions = [revision for revision, _ in seen]
    assert revisions == sorted(revisions)
    print(json.dumps({"revisions": revisions[-1], "adapters": len({a for _, a in seen})}))
    assert revisions[-1] >= rounds // 4, "the kills came before any swap"


def test_killed_at_random(url: str, tmp_path: Path) -> None:
    kill_at_random(url, tmp_path, rounds=8)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_random_hundreds_of_times(url: str, tmp_path: Path) -> None:
    kill_at_random(url, tmp_path, rounds=300 if url.startswith("sqlite") else 100)
