"""Far more adapters than slots: bounded waits, few fills. The scheduler with real slot tables."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.admission import PATIENCE
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.scheduler import Scheduler
from tests.unit.engines.scheduling import PAGE, Slots, advance, job_of


def scheduler(slots: int, running: int) -> tuple[Scheduler, Slots]:
    bank = Slots(slots)
    pool = PagePool(10_000, PAGE)
    return Scheduler(pool, bank, max_running=running, max_tokens_per_step=256), bank


def test_a_cold_adapter_takes_a_slot_that_nobody_waits_for_at_once() -> None:
    s, bank = scheduler(slots=1, running=4)
    s.add(job_of(2, 2, "old"))
    while s.has_work:
        advance(s)
    s.add(job_of(2, 2, "new", "n"))
    assert dict(advance(s)) == {"n": 2}
    assert bank.residents == ("new",)


@pytest.mark.parametrize("tenants", [1, 2])
def test_hot_adapters_cannot_keep_a_cold_one_out(tenants: int) -> None:
    """Requests for the hot adapters never run out, so no slot is ever free by itself."""
    s, _ = scheduler(slots=2, running=4)
    rng = random.Random(0)

    def feed() -> None:
        while len(s.queue) < 20:
            s.add(job_of(2, rng.randint(5, 20), rng.choice(["hot1", "hot2"]), "hot"))

    for _ in range(10):
        feed()
        advance(s)
    s.add(job_of(2, 2, "cold", "cold", tenant="" if tenants == 1 else "other"))
    before = s.num_admitted
    for _ in range(400):
        feed()
        if "cold" in dict(advance(s)):
            break
    else:
        pytest.fail("starved")
    # In its own turn first (20 are ahead in its tenant), then patience, then a short drain.
    assert s.num_admitted - before <= 20 * (tenants == 1) + PATIENCE + 15


def fills_per_request(adapters: int, slots: int, *, count: int = 600) -> tuple[float, int]:
    """Under saturation: how often slots are filled, and the longest wait in admissions."""
    s, bank = scheduler(slots, running=16)
    rng = random.Random(1)
    arrived: dict[str, int] = {}
    longest = admitted = made = 0
    while made < count or s.has_work:
        while made < count and len(s.queue) < 48:
            s.add(job_of(4, rng.randint(4, 12), f"a{rng.randrange(adapters)}", str(made)))
            arrived[str(made)] = s.num_admitted
            made += 1
        for name, tokens in advance(s):
            if tokens == 4 and name in arrived:
                longest = max(longest, s.num_admitted - arrived.pop(name))
                admitted += 1
    assert admitted == count
    return bank.fills / count, longest


def test_no_thrash_at_twice_the_slots() -> None:
    assert fills_per_request(8, 8)[0] * 600 == 8
    fills, longest = fills_per_request(16, 8)
    assert fills < 0.2, "a random order would fill a slot for every second request"
    assert longest < 48 + 2 * PATIENCE


def test_waits_stay_bounded_at_eight_times_the_slots() -> None:
    _, longest = fills_per_request(64, 8)
    assert longest < 48 + 2 * PATIENCE


requests = st.tuples(
    st.integers(0, 20),
    st.integers(1, 12),
    st.integers(1, 10),
    st.sampled_from([None, *"uvwxyz"]),
    st.sampled_from(["f", "g"]),
)


@settings(max_examples=200)
@given(st.lists(requests, min_size=1, max_size=40), st.integers(1, 3), st.integers(1, 5))
def test_whatever_the_traffic_everyone_ends_and_slots_are_never_idle_with_work(
    specs: list[tuple[int, int, int, str | None, str]], slots: int, running: int
) -> None:
    s, bank = scheduler(slots, running)
    arrivals = sorted(specs, key=lambda spec: spec[0])
    done: set[str] = set()
    step = 0
    while arrivals or s.has_work:
        while arrivals and arrivals[0][0] <= step:
            _, prompt, new, adapter, tenant = arrivals.pop(0)
            s.add(job_of(prompt, new, adapter, f"r{len(arrivals)}", tenant))
        had_work = s.has_work
        found = advance(s)
        assert bool(found) == had_work
        done |= {name for name, _ in found}
        step += 1
        assert step < 2000
    assert len(done) == len(specs)
    assert not any(bank.table.pins(digest) for digest in bank.residents)
