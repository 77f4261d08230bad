"""Requests for adapters that are not in host memory: turns, room, and that nobody starves."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.admission import PATIENCE
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.scheduler import Scheduler
from remix_runtime.engines.embedded.tiers import ColdRequests, Tiers
from tests.unit.engines.scheduling import PAGE, Slots, job_of


class Memory:
    """Host memory for `room` adapters of one size, the least recently used leave first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.ready: dict[str, int] = {}
        self.reserved: set[str] = set()

    def is_ready(self, digest: str) -> bool:
        return digest in self.ready

    def reserve(self, digest: str) -> bool:
        while len(self.ready) + len(self.reserved) >= self.room:
            unpinned = next((d for d, pins in self.ready.items() if not pins), None)
            if unpinned is None:
                return False
            del self.ready[unpinned]
        self.reserved.add(digest)
        return True

    def cancel(self, digest: str) -> None:
        self.reserved.discard(digest)

    def fill(self, digest: str) -> None:
        self.reserved.remove(digest)
        self.ready[digest] = 0

    def pin(self, digest: str) -> None:
        self.ready[digest] += 1

    def unpin(self, digest: str) -> None:
        self.ready[digest] -= 1
        assert self.ready[digest] >= 0
        self.ready[digest] = self.ready.pop(digest)


class Host:
    """Tiers and scheduler, stepped by hand; a read takes `delay` steps."""

    def __init__(self, room: int, *, slots: int = 4, running: int = 4, delay: int = 1) -> None:
        self.memory = Memory(room)
        pool = PagePool(1000, PAGE)
        self.scheduler = Scheduler(pool, Slots(slots), max_running=running, max_tokens_per_step=64)
        self.tiers = Tiers(self.memory, self.scheduler)
        self.reads: list[str] = []
        self._delay = delay
        self._left = 0
        self.finished: list[str] = []
        self._num_added = 0

    @property
    def num_waiting(self) -> int:
        """Jobs in both queues: for their adapter's copy, and for their turn."""
        return self._num_added - len(self.finished) - len(self.scheduler.running)

    def add(self, adapter: str | None, name: str, tenant: str = "", new: int = 3) -> Job:
        job = job_of(2, new, adapter, name, tenant)
        self.tiers.add(job)
        self._num_added += 1
        return job

    def step(self) -> dict[str, int]:
        if self._left:
            self._left -= 1
            if not self._left:
                self.memory.fill(self.reads[-1])
                self.tiers.read(self.reads[-1])
        digest = self.tiers.next_read()
        if digest is not None:
            self.reads.append(digest)
            self._left = self._delay
        running = list(self.scheduler.running)
        chunks = self.scheduler.schedule()
        running = list({*running, *self.scheduler.running})
        for chunk in chunks:
            chunk.job.num_computed += chunk.count
            if chunk.samples:
                chunk.job.append(0)
        for q in running:
            if q.num_generated == q.params.max_tokens:
                self.tiers.finish(q)
                self.finished.append(q.request.request_id)
        assert len(self.memory.ready) + len(self.memory.reserved) <= self.memory.room
        return {chunk.job.request.request_id: chunk.count for chunk in chunks}


def test_a_cold_request_waits_for_its_adapter_and_nobody_waits_for_it() -> None:
    host = Host(2, delay=5)
    host.add("cold", "c")
    host.add(None, "base", new=10)
    assert [sorted(host.step()) for _ in range(7)] == [["base"]] * 5 + [["base", "c"]] * 2
    assert host.reads == ["cold"]
    host.add("cold", "again")
    assert "again" in host.step()


def test_tenants_take_turns_in_reading() -> None:
    cold = ColdRequests()
    for i in range(5):
        cold.add(job_of(1, 1, f"loud{i}", tenant="loud"))
    cold.add(job_of(1, 1, "quiet", tenant="quiet"))
    order = []
    while (digest := cold.next()) is not None:
        cold.take(digest)
        order.append(digest)
    assert order == ["loud0", "quiet", "loud1", "loud2", "loud3", "loud4"]
    assert cold.digests == ()


def test_a_failed_read_takes_out_those_that_waited_for_it() -> None:
    host = Host(2)
    for name in ("a", "b"):
        host.add("broken", name)
    host.add("good", "c")
    assert host.tiers.next_read() == "broken"
    assert [q.request.request_id for q in host.tiers.failed("broken")] == ["a", "b"]
    assert not host.memory.reserved
    assert host.tiers.next_read() == "good"


def test_requests_for_adapters_in_memory_cannot_keep_others_out_for_ever() -> None:
    """Both places are in use all the time, and there is always one more request for each."""
    host = Host(2, running=2)
    serial = 0

    def feed() -> None:
        nonlocal serial
        while host.num_waiting < 6:
            serial += 1
            host.add(("hot1", "hot2")[serial % 2], f"hot{serial}")

    for _ in range(10):
        feed()
        host.step()
    host.add("cold", "cold", "other")
    before = host.scheduler.num_admitted
    for _ in range(300):
        feed()
        if "cold" in host.step():
            break
    else:
        pytest.fail("starved")
    assert host.scheduler.num_admitted - before <= 3 * PATIENCE


requests = st.tuples(
    st.integers(0, 15),
    st.sampled_from([None, *"uvwxyz"]),
    st.sampled_from(["f", "g"]),
    st.integers(1, 8),
    st.booleans(),  # aborted
)


@settings(max_examples=200)
@given(
    st.lists(requests, min_size=1, max_size=30),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 4),
)
def test_whatever_the_traffic_everyone_ends_and_memory_holds(
    specs: list[tuple[int, str | None, str, int, bool]], room: int, slots: int, delay: int
) -> None:
    host = Host(room, slots=slots, delay=delay)
    arrivals = sorted(enumerate(specs), key=lambda item: item[1][0])
    aborting = []
    for step in range(3000):
        while arrivals and arrivals[0][1][0] <= step:
            number, (_, adapter, tenant, new, aborts) = arrivals.pop(0)
            q = host.add(adapter, f"r{number}", tenant, new)
            if aborts:
                aborting.append((step + 2, q))
        for when, q in aborting:
            if when == step and q.request.request_id not in host.finished:
                host.tiers.finish(q)
                host.finished.append(q.request.request_id)
        host.step()
        if not arrivals and not host.scheduler.has_work and not host.num_waiting:
            break
    else:
        pytest.fail("somebody waits for ever")
    assert sorted(host.finished) == sorted(f"r{i}" for i in range(len(specs)))
    assert not any(host.memory.ready.values())
