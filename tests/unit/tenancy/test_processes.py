"""Several processes on one database, some of them killed."""

from __future__ import annotations

import asyncio
import random
import signal
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from server.tenancy import Directory
from tests.forkserver import context
from tests.postgres import PostgresServer
from tests.unit.tenancy import processes
from tests.unit.tenancy.samples import check_history, digest, with_tenant

SECONDS = 60


def run(target: Any, *args: Any, **kwargs: Any) -> int | None:
    """The exit code of a process that runs `target`."""
    process = context.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    process.join(SECONDS)
    return process.exitcode


async def test_of_two_processes_that_expect_one_revision_exactly_one_wins(
    url: str, directory: Directory
) -> None:
    rounds = 25
    await with_tenant(directory, "a", "b")
    start, wins = context.Barrier(2, timeout=SECONDS), context.Queue()
    racers = [
        context.Process(target=processes.race_puts, args=(url, name, rounds, start, wins))
        for name in "ab"
    ]
    for racer in racers:
        racer.start()
    won = [wins.get(timeout=SECONDS) for _ in range(rounds)]
    for racer in racers:
        racer.join(SECONDS)
        assert racer.exitcode == 0
    assert wins.empty()
    assert sorted(expected for expected, _ in won) == list(range(rounds))
    by_revision = {
        item.revision: item.actor for item in await directory.revisions("acme", limit=99)
    }
    assert by_revision == {expected + 1: adapter for expected, adapter in won}
    assert await check_history(directory, "acme") == rounds


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_replicas_that_start_at_once_on_empty_databases(
    kind: str, tmp_path: Path, postgres: PostgresServer
) -> None:
    if kind == "sqlite":
        urls = [f"sqlite:///{tmp_path}/{number}.db" for number in range(8)]
    else:
        urls = [postgres.fresh_database() for _ in range(8)]
    start = context.Barrier(3, timeout=SECONDS)
    replicas = [context.Process(target=processes.race_open, args=(urls, start)) for _ in range(3)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join(SECONDS)
    assert [replica.exitcode for replica in replicas] == [0, 0, 0]


async def test_what_one_process_reads_is_not_taken_away_by_another_that_leaves(
    tmp_path: Path,
) -> None:
    """The last process that closes a SQLite file removes its log. That others have it open they say
    by locks, which are lost when any descriptor of the file is closed."""
    directory, log = await Directory.open(f"sqlite:///{tmp_path}/a.db"), tmp_path / "a.db-wal"
    # As a read has it, but for the time by which it has failed.
    engine = directory._database.engine.execution_options(writes=False, wait_ms=1000)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SELECT count(*) FROM tenants")
        async with engine.begin():  # a connection is made for it
            before = log.stat().st_ino
            assert run(processes.announce_tenant, f"sqlite:///{tmp_path}/a.db", "a") == 0
        assert log.stat().st_ino == before
    for _ in range(2):
        assert [tenant.id for tenant in await directory.tenants()] == ["a"]
    await directory.close()


async def test_a_process_killed_at_any_moment_of_a_put_leaves_the_old_set_or_the_new_one(
    url: str, directory: Directory
) -> None:
    await with_tenant(directory, "a", "b")
    old, new = {"style": digest("a")}, {"style": digest("b")}
    outcomes = []
    for step in range(1, 100):
        before = await directory.put_set("acme", old, expected=None, actor="test")
        args = (url, step, "put_set", "acme", new)
        code = run(processes.call_and_die, *args, expected=before.revision, actor="child")
        after = await directory.current_set("acme")
        assert after.adapters in (old, new)
        assert await check_history(directory, "acme") == after.revision
        outcomes.append(after.adapters)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    # Killed before its end: the old one, at every moment. Killed after its return: the new one.
    assert outcomes[-2:] == [new, new]
    assert set(map(repr, outcomes[:-2])) == {repr(old)}
    assert len(outcomes) > 12


async def test_a_process_killed_at_any_moment_of_making_a_tenant_leaves_none_or_a_whole_one(
    url: str, directory: Directory
) -> None:
    for step in range(1, 100):
        tenant = f"t{step}"
        args = (url, step, "create_tenant", tenant)
        code = run(processes.call_and_die, *args, actor="child")
        made = [item.id for item in await directory.tenants() if item.id == tenant]
        told = [row.action for row in await directory.audit(tenant=tenant, limit=9)]
        assert (made, told) in (([], []), ([tenant], ["tenant.create"]))
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert made == [tenant]
    assert step > 8


async def test_processes_killed_at_random_leave_a_whole_history(
    url: str, directory: Directory
) -> None:
    """No statement's boundary is chosen here; a kill may come inside the database's own code."""
    await kill_at_random(url, directory, rounds=8)


async def kill_at_random(url: str, directory: Directory, *, rounds: int) -> None:
    await with_tenant(directory, "a", "b")
    chance = random.Random(0)
    counts = [0]
    for _ in range(rounds):
        running = context.Event()
        here, there = context.Pipe(duplex=False)
        process = context.Process(target=processes.put_for_ever, args=(url, running, there))
        process.start()
        there.close()
        assert running.wait(SECONDS)
        while (await directory.current_set("acme")).revision == counts[-1]:
            pass
        await asyncio.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join()
        written = [0]
        with closing(here), suppress(EOFError):
            while True:
                written.append(here.recv())
        assert (await directory.current_set("acme")).revision >= max(written)
        # The next write waits for a lock that the dead one may have held.
        await directory.put_set("acme", {"alive": digest("a")}, expected=None, actor="test")
        counts.append(await check_history(directory, "acme"))
    assert counts == sorted(set(counts))
