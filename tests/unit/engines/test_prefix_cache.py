"""What the scheduler finds among the pages: whose, how much, since when, and what it costs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.replay import Replay
from remix_runtime.engines.embedded.scheduler import Scheduler
from remix_runtime.fairness.queue import OUTPUT_WEIGHT
from tests.engines import NoText
from tests.unit.adapter.checkpoint.adapters import make_parity
from tests.unit.engines.scheduling import PAGE, PagedModel, Slots, alone, job_of


def model(pages: int = 100, *, budget: int = 64, cache: bool = True) -> PagedModel:
    return PagedModel(
        Scheduler(
            PagePool(pages, PAGE),
            Slots(8),
            max_running=8,
            max_tokens_per_step=budget,
            prefix_cache=cache,
        )
    )


def run(m: PagedModel, *jobs: Job) -> list[int]:
    """Runs the jobs, one after the other; returns how many tokens each of them found."""
    found = []
    for job in jobs:
        m.s.add(job)
        before = m.s.num_found
        while m.s.has_work:
            m.step()
        found.append(m.s.num_found - before)
        assert job.tokens[job.prompt_len :] == alone(job.request)[0]
    return found


@pytest.mark.parametrize(
    ("length", "found"), [(1, 0), (PAGE, 0), (PAGE + 1, PAGE), (3 * PAGE, 2 * PAGE), (14, 12)]
)
def test_full_pages_before_the_newest_token_are_found(length: int, found: int) -> None:
    assert run(model(), job_of(length, 3), job_of(length, 3)) == [0, found]
    assert run(model(cache=False), job_of(length, 3), job_of(length, 3)) == [0, 0]


def test_the_next_turn_finds_the_answer_too() -> None:
    m = model()
    first = job_of(6, 7)
    assert run(m, first) == [0]
    assert run(m, job_of([*first.tokens, 1, 1, 1], 2)) == [12]


def test_a_text_that_differs_in_one_token_shares_what_is_before_it() -> None:
    m = model()
    text = list(range(20))
    run(m, job_of(text, 1))
    text[9] = 1
    assert run(m, job_of(text, 1)) == [8]


OWNERS: list[tuple[str | None, str, str]] = [
    (adapter, tenant, salt) for adapter in (None, "x", "") for tenant in "fg" for salt in ("", "s")
]


@pytest.mark.parametrize("owner", OWNERS)
def test_nothing_is_found_of_another_adapter_tenant_or_salt(
    owner: tuple[str | None, str, str],
) -> None:
    m = model(1000)
    for adapter, tenant, salt in OWNERS:
        if (adapter, tenant, salt) != owner:
            run(m, job_of(20, 5, adapter, tenant=tenant, salt=salt))
    adapter, tenant, salt = owner
    assert run(m, job_of(20, 5, adapter, tenant=tenant, salt=salt)) == [0]
    assert run(m, job_of(20, 5, adapter, tenant=tenant, salt=salt)) == [16]


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(OWNERS),
            st.lists(st.integers(0, 1), min_size=1, max_size=20),
            st.integers(0, 6),
        ),
        min_size=2,
        max_size=12,
    )
)
def test_a_fuzzer_finds_only_what_its_own_owner_computed(
    traffic: list[tuple[tuple[str | None, str, str], list[int], int]],
) -> None:
    m = model(1000)
    past: dict[tuple[str | None, str, str], list[list[int]]] = {}
    for number, ((adapter, tenant, salt), prompt, new) in enumerate(traffic):
        job = job_of(prompt, new + 1, adapter, str(number), tenant, salt=salt)
        own = past.setdefault((adapter, tenant, salt), [])
        best = 0
        for tokens in own:
            equal = next(
                (i for i, (a, b) in enumerate(zip(tokens, prompt, strict=False)) if a != b),
                min(len(tokens), len(prompt)),
            )
            best = max(best, min(equal, len(prompt) - 1) // PAGE * PAGE)
        assert run(m, job) == [best]
        own.append(job.tokens[:-1])  # the last one's keys and values were never computed


def test_pages_are_found_only_after_the_step_that_computed_them() -> None:
    m = model(budget=8)
    first, second = job_of(30, 2, name="a"), job_of(30, 2, name="b")
    m.s.add(first)
    chunks = m.s.schedule()
    assert chunks[0].count == 8
    m.s.add(second)
    m.s.schedule()  # the step of the first chunk has not told that it succeeded
    assert second.num_computed == 0
    m.s.finish(first)
    assert m.s.pool.num_idle == 0


def test_one_that_comes_while_another_computes_finds_what_is_done() -> None:
    m = model(budget=8)
    m.s.add(job_of(30, 2, name="a"))
    m.step()
    m.step()
    second = job_of(30, 2, name="b")
    m.s.add(second)
    m.step()
    assert second.num_kept * PAGE == 16


@pytest.mark.parametrize("length", [30, 31, 32, 33])
def test_of_many_that_come_together_and_begin_alike_one_computes(length: int) -> None:
    m = model(budget=10)
    jobs = [job_of(length, 2, name=str(number), tenant="f") for number in range(4)]
    other = job_of(length, 2, name="other", tenant="g")
    for job in (*jobs, other):
        m.s.add(job)
    while m.s.has_work:
        m.step()
    for job in (*jobs, other):
        assert job.tokens[job.prompt_len :] == alone(job.request)[0]
        assert job.request.meter.prompt_tokens == length
    assert m.s.pool.num_free == m.s.pool.num_pages
    found = (length - 1) // PAGE * PAGE
    told = [job.completion.take((1,)).cached_tokens for job in (*jobs, other)]
    assert told[0] == told[-1] == 0
    assert told[2:4] == [found, found]
    assert m.s.num_found == sum(each or 0 for each in told)
    # What is charged is what was computed, of the prompts and for the answers.
    assert m.s.queue.counter("f") == 4 * length - m.s.num_found + 4 * 2 * 2


def test_scored_prompts_are_computed_and_leave_their_pages_to_others() -> None:
    m = model()
    assert run(m, job_of(12, 2)) == [0]
    assert run(m, job_of(12, 2, prompt_logprobs=0)) == [0]
    assert m.s.num_looked_for == 12
    m = model()
    assert run(m, job_of(12, 2, prompt_logprobs=0), job_of(12, 2)) == [0, 8]


def test_replays_neither_find_nor_leave_pages() -> None:
    m = model()
    parity = make_parity(tokens=9)
    tokens = parity.prompts[0].token_ids_T.tolist()
    run(m, job_of(tokens, 1, "some", tenant="parity replays"))
    idle = m.s.pool.num_idle
    assert idle
    replay = Replay("some", 2, parity, NoText())
    m.s.add(replay)
    m.s.schedule()
    assert replay.num_computed == 0
    replay.num_computed = 9
    m.s.schedule()
    m.s.finish(replay)
    assert m.s.pool.num_idle == idle
    assert m.s.num_looked_for == len(tokens)


def test_the_whole_prompt_is_metered_and_what_is_computed_is_charged() -> None:
    m = model()
    jobs = [job_of(13, 2, tenant="f") for _ in range(2)]
    run(m, jobs[0])
    charged = m.s.queue.counter("f")
    run(m, jobs[1])
    assert [job.request.meter.prompt_tokens for job in jobs] == [13, 13]
    assert m.s.queue.counter("f") - charged == 1 + 2 * 2


def test_what_is_found_again_before_anything_was_computed_counts_once() -> None:
    """A request that enters, waits behind another prompt, and is set back."""
    m = model(30, budget=6)
    prompt = [*range(100, 116), 1, 2]
    assert run(m, job_of(prompt, 1, tenant="t")) == [0]
    before = m.s.queue.counter("t")
    m.s.add(job_of(list(range(200, 232)), 2, tenant="t"))
    job = job_of(prompt, 1, tenant="t")
    m.s.add(job)
    for _ in range(3):
        m.step()
        assert job in m.s.running
        assert not job.request.meter.prompt_tokens
        m.s._set_back(job)
    assert m.s.queue.counter("t") - before == 32 + len(prompt)
    assert m.s.num_found == 0
    while job.tokens == prompt:
        m.step()
    assert m.s.num_found == 16
    assert job.completion.take((1,)).cached_tokens == 16
    while m.s.has_work:
        m.step()
    # Both prompts and three tokens, less what was found.
    assert m.s.queue.counter("t") - before == 32 + len(prompt) - 16 + 3 * OUTPUT_WEIGHT


def test_a_request_that_was_set_back_finds_its_own_pages() -> None:
    m = model(8)
    jobs = [job_of(4, 24, name=name, tenant=name) for name in ("a", "b")]
    for job in jobs:
        m.s.add(job)
    m.step()
    while not m.s.num_preemptions:
        m.step()
    back = next(job for _, job in m.s.queue)
    while back not in m.s.running:
        m.s.finish(next(iter(m.s.running)))
        m.s.schedule()
    full = (len(back.tokens) - 1) // PAGE
    assert full - 1 <= back.num_computed // PAGE <= full, "but one, which the other has taken"
    assert m.s.num_found == 0, "of its prompt nothing was found when it came"
    back.completion.take((1,))
    m.step()
    assert back.completion.take((1,)).cached_tokens is None


def test_cached_pages_make_room_for_whoever_needs_it() -> None:
    m = model(10)
    run(m, job_of(30, 5, tenant="f"))
    assert m.s.pool.num_idle == 8
    run(m, job_of(35, 3, tenant="g"))
    assert m.s.num_preemptions == 0
    assert m.s.pool.num_free == 10


@pytest.mark.parametrize("cache", [True, False])
def test_the_first_event_tells_how_much_was_found(cache: bool) -> None:
    m = model(cache=cache)
    jobs = [job_of(9, 2), job_of(9, 2), job_of(9, 2, prompt_logprobs=0)]
    run(m, *jobs)
    told = [job.completion.take((1,)).cached_tokens for job in jobs]
    assert told == ([0, 8, 0] if cache else [None] * 3)
    assert jobs[0].completion.take((1,)).cached_tokens is None


def test_another_tenants_pages_change_nothing_about_who_enters_when() -> None:
    def steps(before: Callable[[PagedModel], None]) -> list[list[tuple[str, int]]]:
        m = model(20, budget=8)
        before(m)
        for number in range(5):
            m.s.add(job_of(20, 9, name=str(number), tenant="g"))
        seen = []
        while m.s.has_work:
            m.step()
            seen.append([(job.request.request_id, len(job.tokens)) for job in m.s.running])
        return seen

    def fill(m: PagedModel) -> None:
        run(m, job_of(20, 9, tenant="f"), job_of([7] * 40, 9, tenant="f"))

    def same_work(m: PagedModel) -> None:
        fill(m)
        m.s.pool.take(m.s.pool.num_free)  # all that was kept is gone
        m.s.pool.give_back(range(20))

    assert steps(fill) == steps(same_work)
