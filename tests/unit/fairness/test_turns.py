"""A few at a time, in turns between tenants; who leaves takes nobody's turn along."""

from __future__ import annotations

import asyncio

from remix_runtime.fairness.turns import FairTurns


async def take(turns: FairTurns, tenant: str, log: list[str], gate: asyncio.Event) -> None:
    async with turns.turn(tenant):
        log.append(tenant)
        await gate.wait()


async def test_tenants_take_turns_and_at_most_so_many_at_once() -> None:
    turns, log, gate = FairTurns(2), [], asyncio.Event()
    tasks = [asyncio.create_task(take(turns, "loud", log, gate)) for _ in range(6)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(take(turns, "quiet", log, gate)) for _ in range(2)]
    for _ in range(3):
        await asyncio.sleep(0)
    assert log == ["loud", "loud"]
    gate.set()
    await asyncio.gather(*tasks)
    assert log.index("quiet") <= 3
    assert len(log) == 8


async def test_who_leaves_waiting_or_at_work_gives_its_turn_back() -> None:
    turns, log, gate = FairTurns(1), [], asyncio.Event()
    working, waiting, last = (asyncio.create_task(take(turns, t, log, gate)) for t in "abc")
    await asyncio.sleep(0)
    waiting.cancel()
    working.cancel()
    await asyncio.gather(working, waiting, return_exceptions=True)
    gate.set()
    await last
    assert log == ["a", "c"]
    await asyncio.wait_for(take(turns, "d", log, gate), 5)


async def test_who_leaves_at_the_moment_of_its_turn_gives_it_back() -> None:
    turns, log, gate = FairTurns(1), [], asyncio.Event()
    first, second, third = (asyncio.create_task(take(turns, t, log, gate)) for t in "abc")
    await asyncio.sleep(0)
    gate.set()
    await first  # the second one's turn has come, and it has not run since
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await asyncio.wait_for(third, 5)
    assert log in (["a", "c"], ["a", "b", "c"])
