"""Where imports run: slow sources hold up nobody else, and places come in turns."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from pathlib import Path

import pytest

from remix_runtime.adapter.examination import ExaminationLimits
from server.store import (
    AdapterStore,
    FetchPolicy,
    StoredAdapter,
)
from server.store import rooms as rooms_module
from server.store.rooms import AT_ONE_PLACE, Examiner
from server.store.turns import Turns
from tests.clocks import settle
from tests.unit.store.conftest import contents, write_adapter
from tests.unit.store.web import FileWeb


class ManyHosts(FileWeb):
    host = "0.0.0.0"


def hosts(web: FileWeb, first: int, last: int) -> list[str]:
    """Sources at as many hosts, which are one server."""
    return [web.url.replace("127.0.0.1", f"127.0.1.{n}") + "/adapter" for n in range(first, last)]


async def test_slow_sources_hold_up_nobody_else(tmp_path: Path, adapter: Path) -> None:
    """Eight hosts hang with more imports each than they get places. Other imports of the web, of
    this machine, those of adapters that are served, and the collection of garbage go on; and so
    it is again when as many hosts hang that served adapters come from."""
    store = AdapterStore(
        tmp_path / "few", policy=FetchPolicy(http=True, networks=(ip_network("127.0.0.0/8"),))
    )
    files = {f"/adapter/{name}": data for name, data in contents(adapter).items()}
    web, other = ManyHosts(files), FileWeb(files)
    go_on, hanging = threading.Event(), threading.Semaphore(0)

    def hang(path: str) -> None:
        hanging.release()
        assert go_on.wait(600)

    web.before = hang
    write_adapter(tmp_path / "local", seed=1)
    slow: list[asyncio.Future[StoredAdapter]] = []

    async def hang_at(sources: list[str], *, is_served: bool) -> None:
        begun = [
            asyncio.ensure_future(store.import_from(source, is_served=is_served))
            for source in sources
            for _ in range(AT_ONE_PLACE + 1)
        ]
        slow.extend(begun)
        for _ in sources:  # one of each at least
            assert await asyncio.to_thread(hanging.acquire, timeout=600)

    async def others_go_on() -> None:
        await store.import_from(f"{other.url}/adapter")
        await store.import_from(str(tmp_path / "local"))
        await store.import_from(f"{other.url}/adapter", is_served=True)
        await store.collect_garbage(frozenset(store.digests()), min_age_seconds=3600)
        assert not any(task.done() for task in slow)

    try:
        async with asyncio.timeout(600):
            await hang_at(hosts(web, 0, 8), is_served=False)
            assert len(store._new._turns[True]._held) == 8
            await others_go_on()
            await hang_at(hosts(web, 8, 16), is_served=True)
            await others_go_on()
    finally:
        store.close()  # so that what hangs ends at its next read
        go_on.set()
        await asyncio.gather(*slow, return_exceptions=True)
        other.close()
        web.close()


@pytest.mark.parametrize("places", [8, 32])
async def test_fewer_free_places_are_fewer_for_each(places: int) -> None:
    turns, go_on = Turns(4, places), asyncio.Event()
    inside: list[str] = []

    async def work(key: str) -> None:
        async with turns.turn(key):
            inside.append(key)
            await go_on.wait()

    tasks = []
    for number in range(places):
        tasks += [asyncio.ensure_future(work(f"{number}")) for _ in range(10)]
        await settle()
        # Half of as many hosts as there are places leave some for others.
        assert (f"{number}" in inside) or number >= places // 2 - 1
    assert len(inside) == places
    assert max(inside.count(key) for key in inside) <= 4
    go_on.set()
    await asyncio.gather(*tasks)
    assert (turns._held, turns._waiting) == ({}, {})
    assert len(inside) == 10 * places


async def test_turns_are_given_back_and_forgotten() -> None:
    turns = Turns(2, 8)
    inside, most, order = 0, 0, list[int]()

    async def work(number: int) -> None:
        nonlocal inside, most
        async with turns.turn("a"):
            inside += 1
            most = max(most, inside)
            order.append(number)
            try:
                await asyncio.sleep(0)
            finally:
                inside -= 1

    tasks = [asyncio.ensure_future(work(number)) for number in range(10)]
    await asyncio.sleep(0)
    tasks[-1].cancel()
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 2
    assert order == sorted(order)
    assert (turns._held, turns._waiting) == ({}, {})


@pytest.mark.parametrize("sooner", ["the place", "the cancellation"])
async def test_a_turn_that_comes_while_its_waiter_is_cancelled_goes_to_the_next(
    sooner: str,
) -> None:
    turns, go_on = Turns(1, 1), asyncio.Event()

    async def work() -> str:
        async with turns.turn("a"):
            await go_on.wait()
        return "done"

    first, second, third = (asyncio.ensure_future(work()) for _ in range(3))
    await settle()
    first.cancel()
    if sooner == "the place":
        await asyncio.sleep(0)  # the first gives it to the second, which has not run since
    second.cancel()
    await settle()
    go_on.set()
    assert await third == "done"
    assert (second.cancelled(), turns._held, turns._waiting) == (True, {}, {})


def test_what_is_served_is_examined_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One at a time: each may take an adapter's size of memory."""
    examined, at_once, go_on = list[str](), list[int](), threading.Event()
    running = 0

    def examine(folder: Path, limits: ExaminationLimits) -> None:
        nonlocal running
        running += 1
        at_once.append(running)
        examined.append(folder.name)
        assert go_on.wait(60)
        running -= 1

    monkeypatch.setattr(rooms_module, "examine", examine)
    examiner = Examiner(ExaminationLimits())
    with ThreadPoolExecutor(8) as threads:
        names = ["first", "new", "new", "new", "served", "served"]
        for name in names:
            threads.submit(examiner.examine, Path(name), is_urgent=name == "served")
            if name == "first":
                while not examined:
                    pass
        while examiner._num_urgent < 2:
            pass
        go_on.set()
    assert examined == ["first", "served", "served", "new", "new", "new"]
    assert at_once == [1] * 6
