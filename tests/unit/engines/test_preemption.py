"""Pages on demand: who is set back, that nothing is lost or charged twice, and that all end."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.replay import Replay
from remix_runtime.engines.embedded.scheduler import Scheduler
from remix_runtime.fairness.queue import FairQueue
from tests.engines import NoText
from tests.unit.adapter.checkpoint.adapters import make_parity
from tests.unit.engines.scheduling import PAGE, PagedModel, Slots, alone, job_of


def scheduler(
    pages: int, *, running: int = 8, slots: int = 4, budget: int = 64, cache: bool = False
) -> Scheduler:
    return Scheduler(
        PagePool(pages, PAGE),
        Slots(slots),
        max_running=running,
        max_tokens_per_step=budget,
        prefix_cache=cache,
    )


def names(jobs: list[Job]) -> list[str]:
    return [job.request.request_id for job in jobs]


def run(s: Scheduler, jobs: list[Job]) -> None:
    model = PagedModel(s)
    for job in jobs:
        s.add(job)
    while s.has_work:
        model.step()
    for job in jobs:
        assert job.tokens[job.prompt_len :] == alone(job.request)[0]


def test_many_that_may_become_long_run_together_while_they_are_short() -> None:
    s = scheduler(20)
    for number in range(4):
        s.add(job_of(4, 70, name=str(number)))  # 73 rows: 19 pages each in the end
    PagedModel(s).step()
    assert names(s.running) == ["0", "1", "2", "3"]


def test_inside_a_tenant_the_last_admitted_goes_and_is_the_next_to_come() -> None:
    s = scheduler(8)
    jobs = [job_of(6, 15, name=name) for name in ("a", "b", "c")]
    for job in jobs:
        s.add(job)
    model = PagedModel(s)
    for _ in range(3):
        model.step()
    assert names(s.running) == ["a", "b", "c"]
    s.add(job_of(2, 2, name="d"))
    while len(s.running) == 3:
        model.step()
    assert names(s.running) == ["a", "b"]
    assert names([job for _, job in s.queue]) == ["c", "d"]
    assert (jobs[2].pages, jobs[2].num_computed) == ([], 0)
    assert jobs[2].num_generated
    assert s.num_preemptions == 1
    while s.has_work:
        model.step()
    for job in jobs:
        assert job.tokens[job.prompt_len :] == alone(job.request)[0]


def test_between_tenants_the_one_that_was_served_most_goes() -> None:
    s = scheduler(6)
    early, late = job_of(6, 15, name="early", tenant="f"), job_of(6, 15, name="late", tenant="g")
    s.add(early)
    s.add(late)
    s.queue.charge_output("f", 100)
    model = PagedModel(s)
    while not s.num_preemptions:
        model.step()
    assert names(s.running) == ["late"]
    assert early in [job for _, job in s.queue]


def test_one_that_another_has_set_back_in_the_same_step_is_not_set_back_twice() -> None:
    """Of a tenant that is far ahead while another's long prompt waits."""
    s = scheduler(6)
    jobs = [job_of(4, 20, name="x", tenant="c"), job_of(4, 20, name="y", tenant="b")]
    for job in jobs:
        s.add(job)
    model = PagedModel(s)
    model.step()
    jobs.append(job_of(20, 2, name="long", tenant="a"))
    s.add(jobs[-1])
    charged = False
    while s.has_work:
        if not charged and [len(job.tokens) for job in jobs[:2]] == [12, 12]:
            assert s.pool.num_free == 0
            s.queue.charge_output("b", 2 * s.batch_tokens)
            charged = True
        model.step()
    assert charged
    for job in jobs:
        assert job.tokens[job.prompt_len :] == alone(job.request)[0]


def test_inside_a_tenant_those_that_are_set_back_come_again_in_their_order() -> None:
    s = scheduler(8, budget=16)
    for name in ("a", "b", "c"):
        s.add(job_of(6, 25, name=name, tenant="f"))
    model = PagedModel(s)
    model.step()
    s.add(job_of(20, 2, name="long", tenant="g"))
    s.queue.charge_output("f", 2 * s.batch_tokens)
    waiting: list[list[str]] = []
    for _ in range(6):
        model.step()
        waiting.append([name for name in names([job for _, job in s.queue]) if name != "long"])
    assert ["a", "b", "c"] in waiting
    assert all(found == sorted(found) for found in waiting)


def test_who_has_returned_makes_a_token_before_it_goes_again() -> None:
    s = scheduler(8)
    jobs = [job_of(6, 18, name=name) for name in ("a", "b", "c")]
    for job in jobs:
        s.add(job)
    model, made = PagedModel(s), {}
    while s.has_work:
        before = {job: job.num_generated for job in s.running}
        count = s.num_preemptions
        model.step()
        gone = [job for job in before if job in [each for _, each in s.queue]]
        if s.num_preemptions > count:
            for job in gone:
                assert made.get(job) != before[job], "nothing came of it"
                made[job] = before[job]
    assert made


def test_the_first_in_order_stays_and_who_has_returned_goes_only_where_no_other_can() -> None:
    s = scheduler(20)
    a, b, c = (job_of(2, 9, name=name, tenant=name) for name in "abc")
    for job in (c, a, b):
        s.add(job)
    s.schedule()
    for job, tokens in ((a, 10), (b, 20), (c, 30)):
        s.queue.charge(job.request.tenant, tokens)
    assert s._last_in_turn() is c
    c.has_returned = True
    assert s._last_in_turn() is b
    b.has_returned = True
    assert s._last_in_turn() is c


def test_a_newcomer_leaves_room_to_those_that_run() -> None:
    s = scheduler(6)
    for name in ("a", "b"):
        s.add(job_of(6, 15, name=name))  # two pages each, and more to come
    model = PagedModel(s)
    model.step()
    s.add(job_of(2, 9, name="c"))  # one page: it would fit, and be set back soon
    for _ in range(4):
        model.step()
        assert names(s.running) == ["a", "b"]
    assert not s.num_preemptions


def test_what_is_computed_again_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled: list[object] = []
    s = scheduler(6)
    jobs = [job_of(7, 14, name=name, tenant=name, prompt_logprobs=0) for name in ("f", "g")]
    for job in jobs:
        told = job.completion.scheduled
        monkeypatch.setattr(
            job.completion,
            "scheduled",
            lambda job=job, told=told: (scheduled.append(job), told()),
        )
    run(s, jobs)
    assert s.num_preemptions
    assert sorted(map(jobs.index, scheduled)) == [0, 1]
    for job in jobs:
        meter = job.request.meter
        assert (meter.prompt_tokens, meter.output_tokens) == (7, 14)
    counters = [s.queue.counter(tenant) for tenant in ("f", "g")]
    assert min(counters) == 7 + 2 * 14
    assert sum(counters) <= 2 * min(counters) + 2 * 14, "no more than the lift of who waits again"


def test_a_prompt_that_is_scored_is_scored_once() -> None:
    s = scheduler(9, budget=4)
    first = job_of(4, 24, name="first")
    scored = job_of(16, 3, name="scored", prompt_logprobs=0)
    s.add(first)
    s.add(scored)
    model = PagedModel(s)
    model.step()
    while not s.num_preemptions:
        model.step()
        if 4 < scored.num_computed < 12 and s.pool.num_free:
            taken = s.pool.take(s.pool.num_free)  # so that the other one cannot grow
            assert taken is not None
    assert 1 < len(scored.prompt_logprobs) < 16
    s.pool.give_back(taken)
    while s.has_work:
        model.step()
    rows = [each and each.chosen.token_id for each in scored.prompt_logprobs]
    assert rows == [None, *alone(scored.request)[1][:-1]]


def test_a_replay_that_is_set_back_begins_its_prompt_again() -> None:
    s = scheduler(5)
    replay = Replay("some", 2, make_parity(tokens=9), NoText())
    s.add(replay)
    s.schedule()
    assert len(replay.pages) == 3
    replay.num_computed = 5
    replay._routes = [{}]
    s._set_back(replay)
    assert (replay.num_computed, replay.pages, replay._routes) == (0, [], [])
    s.schedule()
    assert s.running == [replay]


def test_a_tenant_far_ahead_takes_no_more_pages() -> None:
    """Or it would grow into all that becomes free, and another's long prompt would wait."""
    s = scheduler(8)
    for name in ("a", "b"):
        s.add(job_of(6, 25, name=name, tenant="f"))
    model = PagedModel(s)
    model.step()
    s.add(job_of(20, 2, name="long", tenant="g"))
    s.queue.charge_output("f", 2 * s.batch_tokens)
    for _ in range(4):
        running = s.running.copy()
        model.step()
    assert names(running) == ["long"]


def test_put_back_is_in_front_and_lifts_like_an_arrival() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.add("f", "f1")
    queue.charge_prompt("f", 10)
    queue.put_back("f", "f0", behind=lambda other: other < "f0")
    queue.put_back("g", "g0", behind=lambda other: other < "g0")
    assert list(queue) == [("f", "f0"), ("f", "f1"), ("g", "g0")]
    queue.put_back("f", "f0b", behind=lambda other: other < "f0b")
    assert [item for tenant, item in queue if tenant == "f"] == ["f0", "f0b", "f1"]
    assert queue.counter("g") == 10


@dataclass(frozen=True)
class Spec:
    arrives: int
    prompt: tuple[int, ...]
    new: int
    adapter: str | None
    tenant: str
    salt: str
    scored: int | None
    aborts_after: int | None


specs = st.builds(
    Spec,
    arrives=st.integers(0, 25),
    prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20).map(tuple)
    | st.integers(1, 20).map(lambda length: (0,) * length),
    new=st.integers(1, 24),
    adapter=st.sampled_from([None, "x", "y", "z"]),
    tenant=st.sampled_from("fgh"),
    salt=st.sampled_from(["", "s"]),
    scored=st.sampled_from([None, None, 0]),
    aborts_after=st.none() | st.integers(0, 20),
)


@settings(max_examples=150)
@given(
    st.lists(specs, min_size=1, max_size=16),
    st.integers(11, 24),
    st.integers(1, 6),
    st.integers(1, 3),
    st.data(),
)
def test_every_answer_is_the_requests_alone_and_everything_comes_back(
    given_specs: list[Spec], pages: int, running: int, slots: int, data: st.DataObject
) -> None:
    budget = data.draw(st.integers(running, 30))
    cache = data.draw(st.booleans())
    s = scheduler(pages, running=running, slots=slots, budget=budget, cache=cache)
    require_right_answers(s, given_specs)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**62), cache=st.booleans())
def test_so_it_is_where_texts_begin_alike_and_memory_is_full(seed: int, cache: bool) -> None:
    rng = random.Random(seed)
    given_specs = [
        Spec(
            arrives=rng.choice([0, rng.randint(0, 20)]),
            prompt=tuple(rng.choice([(0, 1, 2), (0, 0, 1)]) * 10)[: rng.randint(5, 20)],
            new=rng.randint(1, 24),
            adapter=rng.choice([None, None, "x"]),
            tenant=rng.choice("fffg"),
            salt=rng.choice(["", "", "s"]),
            scored=rng.choice([None, None, 0]),
            aborts_after=rng.choice([None, None, rng.randint(0, 20)]),
        )
        for _ in range(rng.randint(4, 16))
    ]
    running = rng.randint(2, 8)
    s = scheduler(
        rng.randint(11, 20), running=running, budget=rng.randint(running, 16), cache=cache
    )
    require_right_answers(s, given_specs)


def require_right_answers(s: Scheduler, given_specs: list[Spec]) -> None:
    """Runs the requests to their ends, and looks at the pages after each step."""
    pages, running, cache = s.pool.num_pages, s._max_running, s._prefix_cache
    model, bank = PagedModel(s), s._adapters
    waiting = sorted(given_specs, key=lambda spec: spec.arrives)
    jobs: dict[Job, Spec] = {}
    came: dict[Job, int] = {}
    ended: set[Job] = set()
    # Each step makes a token or computes a prompt further, which is lost only where one is made.
    work = sum(len(spec.prompt) + spec.new for spec in given_specs)
    bound = 25 + work * (1 + running)
    step = 0
    while waiting or len(ended) < len(jobs):
        while waiting and waiting[0].arrives <= step:
            spec = waiting.pop(0)
            job = job_of(
                spec.prompt, spec.new, spec.adapter, str(step), spec.tenant, spec.scored, spec.salt
            )
            jobs[job], came[job] = spec, step
            s.add(job)
        for job, spec in jobs.items():
            after = spec.aborts_after
            if job not in ended and after is not None and came[job] + after == step:
                s.finish(job)
                ended.add(job)
        if s.has_work:
            ended |= set(model.step())
        held = {page for job in s.running for page in job.pages}
        assert len(held) + s.pool.num_free == pages
        assert not any(job.pages for job in jobs if job not in s.running)
        step += 1
        assert step <= bound, "somebody waits for ever"
    for job, spec in jobs.items():
        answer, rows = alone(job.request)
        found = job.tokens[job.prompt_len :]
        assert found == answer[: len(found)]
        assert len(found) == spec.new or spec.aborts_after is not None
        assert job.request.meter.output_tokens == len(found)
        if found:
            assert job.request.meter.prompt_tokens == job.prompt_len
            if spec.scored is not None:
                scored = [each and each.chosen.token_id for each in job.prompt_logprobs]
                assert scored == [None, *rows[:-1]]
    assert s.pool.num_free == pages
    assert not s._wanted
    if not cache:
        assert s.pool.num_idle == s.num_found == 0
    assert sorted(s.pool.take(pages) or ()) == list(range(pages))
    assert isinstance(bank, Slots)
    assert not any(bank.table.pins(digest) for digest in "xyz")
