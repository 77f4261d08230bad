"""The scheduler alone, with no model: budgets, admission, and that everything comes back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.engines.embedded.admission import PATIENCE
from remix_runtime.engines.embedded.pages import PagePool
from remix_runtime.engines.embedded.replay import Replay
from remix_runtime.engines.embedded.scheduler import MAX_SCORED_TOKENS, Scheduler
from tests.engines import NoText
from tests.unit.adapter.checkpoint.adapters import make_parity
from tests.unit.engines.scheduling import PAGE, Slots, advance, job_of


def scheduler(
    pages: int = 100, slots: int = 4, running: int = 8, budget: int = 16
) -> tuple[Scheduler, Slots]:
    bank = Slots(slots)
    pool = PagePool(pages, PAGE)
    return Scheduler(pool, bank, max_running=running, max_tokens_per_step=budget), bank


def test_a_long_prompt_is_cut_into_chunks_and_does_not_stop_a_decode() -> None:
    s, _ = scheduler(budget=16)
    s.add(job_of(2, 20, name="short"))
    assert advance(s) == [("short", 2)]
    s.add(job_of(40, 2, name="long"))
    steps = [dict(advance(s)) for _ in range(3)]
    assert [step["long"] for step in steps] == [15, 15, 10]
    assert all(step["short"] == 1 for step in steps)


def test_a_replay_is_charged_for_all_its_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports adapters with long parity files takes no more than one share."""
    s, _ = scheduler()
    charged: dict[str, int] = {}
    monkeypatch.setattr(s.queue, "charge_prompt", charged.__setitem__)
    parity = make_parity(tokens=7)
    replay = Replay("some", 2, parity, NoText())
    s.add(replay)
    s.add(job_of(3, 2, tenant="acme"))
    s.schedule()
    assert charged == {replay.request.tenant: 7 * len(parity.prompts), "acme": 3}
    assert len(replay.pages) == s.pool.pages_for(7)


def test_few_prompt_tokens_are_scored_in_a_step_and_others_go_on_beside() -> None:
    """Each of them takes logits of the whole vocabulary."""
    s, _ = scheduler(pages=1000, budget=10 * MAX_SCORED_TOKENS)
    long = 2 * MAX_SCORED_TOKENS
    for name in ("one", "two"):
        s.add(job_of(long, 1, name=name, prompt_logprobs=0))
    s.add(job_of(long, 1, name="plain"))
    seen: dict[str, int] = {}
    for _ in range(20):
        chunks = s.schedule()
        scored = [c.num_logits for c in chunks if c.job.params.prompt_logprobs is not None]
        assert sum(scored) <= MAX_SCORED_TOKENS + 1  # the last token gives the next one
        for chunk in chunks:
            name = chunk.job.request.request_id
            seen[name] = seen.get(name, 0) + chunk.num_logits
            chunk.job.num_computed += chunk.count
            if chunk.samples:
                s.finish(chunk.job)
    assert seen == {"one": long, "two": long, "plain": 1}


def test_long_prompts_of_one_tenant_leave_another_its_part_of_each_step() -> None:
    s, _ = scheduler(pages=1000, budget=16)
    for number in range(3):
        s.add(job_of(200, 1, name=f"long{number}", tenant="f"))
    advance(s)
    s.add(job_of(20, 1, name="short", tenant="g"))
    assert [dict(advance(s)) for _ in range(3)] == [
        {"long0": 8, "short": 8},
        {"long0": 8, "short": 8},
        {"long0": 12, "short": 4},  # what it does not need is the other's
    ]
    assert dict(advance(s)) == {"long0": 16}


wanted_prompts = st.lists(
    st.tuples(st.sampled_from("fgh"), st.integers(1, 60), st.sampled_from([None, 0])), min_size=1
)


@given(wanted_prompts, st.integers(16, 40))
def test_the_parts_of_a_step_are_equal_and_nothing_is_left(
    wanted: list[tuple[str, int, int | None]], budget: int
) -> None:
    s, _ = scheduler(pages=10_000, running=16, budget=budget)
    for number, (tenant, prompt, scored) in enumerate(wanted):
        s.add(job_of(prompt, 2, name=str(number), tenant=tenant, prompt_logprobs=scored))
    while s.has_work:
        chunks = s.schedule()
        decodes = [chunk for chunk in chunks if len(chunk.job.tokens) - chunk.start == 1]
        assert len(decodes) == sum(len(j.tokens) - j.num_computed == 1 for j in s.running)
        want, got = dict.fromkeys("fgh", 0), dict.fromkeys("fgh", 0)
        for job in s.running:
            left = len(job.tokens) - job.num_computed
            want[job.request.tenant] += left if left > 1 else 0
        for chunk in chunks:
            got[chunk.job.request.tenant] += chunk.count if chunk not in decodes else 0
        rest = budget - len(decodes)
        assert sum(got.values()) == min(rest, sum(want.values()))
        waiting = [tenant for tenant in want if want[tenant]]
        assert all(got[t] >= min(want[t], rest // len(waiting)) for t in waiting)
        for chunk in chunks:
            chunk.job.num_computed += chunk.count
            if chunk.samples:
                chunk.job.append(0)
                if chunk.job.num_generated == chunk.job.params.max_tokens:
                    s.finish(chunk.job)


def test_decodes_come_before_prompts_that_arrived_earlier() -> None:
    s, _ = scheduler(budget=8)
    s.add(job_of(100, 1, name="long"))
    advance(s)
    s.add(job_of(1, 5, name="late"))
    advance(s)
    assert dict(advance(s))["late"] == 1


def test_a_sequence_without_a_slot_is_overtaken_only_so_often() -> None:
    s, _ = scheduler(slots=1, running=4)
    s.add(job_of(1, 3, "hot", name="0"))
    advance(s)
    s.add(job_of(1, 3, "cold", name="cold"))
    overtook = 0
    for number in range(1, 3 * PATIENCE):
        # Always another one for the resident adapter, and one for the base, which needs no slot.
        s.add(job_of(1, 3, "hot", name=str(number)))
        s.add(job_of(1, 1, None, name=f"base{number}"))
        ran = [name for name, _ in advance(s)]
        assert any(name.startswith("base") for name in ran)
        overtook += str(number) in ran
        if "cold" in ran:
            break
    else:
        pytest.fail("the cold adapter never ran")
    assert 0 < overtook <= PATIENCE


def test_a_request_enters_when_its_prompt_fits_and_holds_back_those_behind_it() -> None:
    s, _ = scheduler(pages=5)
    s.add(job_of(8, 100, name="a"))  # 9 rows: 3 pages, and one more soon
    s.add(job_of(5, 1, name="b"))  # 2 pages are free, but a's next one must be left
    s.add(job_of(1, 1, name="c"))  # would fit, but not past b
    for _ in range(4):
        assert list(dict(advance(s))) == ["a"]
    s.finish(s.running[0])
    assert dict(advance(s)) == {"b": 5, "c": 1}


def test_a_request_that_will_not_grow_needs_no_room_beside_it() -> None:
    s, _ = scheduler(pages=5)
    s.add(job_of(8, 4, name="a"))  # 11 rows: 3 pages to its end
    s.add(job_of(8, 1, name="b"))  # 2 pages
    assert dict(advance(s)) == {"a": 8, "b": 8}


def test_a_request_without_a_free_slot_lets_others_pass() -> None:
    s, bank = scheduler(slots=1)
    for name, adapter in (("a", "x"), ("b", "y"), ("c", "x"), ("d", None)):
        s.add(job_of(2, 2, adapter, name))
    assert sorted(n for n, _ in advance(s)) == ["a", "c", "d"]
    advance(s)
    assert advance(s) == [("b", 2)]
    assert bank.table.slot("y") == 0


def test_tokens_of_one_adapter_are_side_by_side() -> None:
    s, _ = scheduler()
    for i, adapter in enumerate(["x", None, "y", "x", None, "y"]):
        s.add(job_of(1, 3, adapter, f"r{i}"))
    slots = [chunk.job.slot for chunk in s.schedule()]
    assert slots == sorted(slots)
    assert len(set(slots)) == 3


requests = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 12), st.sampled_from([None, "x", "y", "z"])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150)
@given(requests, st.integers(11, 30), st.integers(1, 3), st.integers(1, 5), st.data())
def test_every_request_ends_once_and_everything_comes_back(
    specs: list[tuple[int, int, str | None]],
    pages: int,
    slots: int,
    running: int,
    data: st.DataObject,
) -> None:
    budget = data.draw(st.integers(running, 20))
    s, bank = scheduler(pages, slots, running, budget)
    sequences = [job_of(p, n, a, f"r{i}") for i, (p, n, a) in enumerate(specs)]
    for item in sequences:
        s.add(item)
    aborted = data.draw(st.sets(st.sampled_from(sequences), max_size=3))
    steps = 0
    while s.has_work:
        counts = advance(s)
        assert counts, "work waits but nothing is scheduled"
        assert sum(n for _, n in counts) <= budget
        assert len(s.running) <= running
        held = [page for q in s.running for page in q.pages]
        assert len(held) == len(set(held)) == pages - s.pool.num_free
        if steps == 2:
            for item in aborted:
                s.finish(item)
        steps += 1
    assert s.pool.num_free == pages
    assert not any(bank.table.pins(d) for d in "xyz")
    for item in set(sequences) - aborted:
        assert item.num_generated == item.params.max_tokens


def test_finishing_twice_frees_once() -> None:
    s, bank = scheduler()
    item = job_of(3, 3, "x")
    s.add(item)
    s.schedule()
    s.finish(item)
    s.finish(item)
    assert s.pool.num_free == 100
    assert bank.table.pins("x") == 0
