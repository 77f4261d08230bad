"""Proposals without a model: the index is a brute-force search, chances follow what comes true, and
a step gives them what is left and nearly free."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.engines.embedded import proposals
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.proposals import LONGEST, MAX_ROWS, Proposer, TextIndex
from remix_runtime.engines.embedded.scheduler import PagePool, Scheduler
from tests.unit.engines.scheduling import PAGE, Slots, job_of

texts = st.one_of(
    st.lists(st.integers(0, 3), min_size=1, max_size=120),
    st.builds(
        lambda motif, times, tail: motif * times + tail,
        st.lists(st.integers(0, 9), min_size=1, max_size=30),
        st.integers(1, 5),
        st.lists(st.integers(0, 9), max_size=5),
    ),
)


def brute_force(tokens: Sequence[int], tries: int, but: int = 0) -> tuple[int, int]:
    """As `TextIndex.find` is described, by looking at the whole text."""
    end = len(tokens) - 1 - but
    places = [place for place in range(end) if tokens[place] == tokens[end]]
    best = (-1, 0)
    for place in places[::-1][:tries]:
        length = 0
        while length < min(LONGEST, place + 1) and tokens[place - length] == tokens[end - length]:
            length += 1
        if length > best[1]:
            best = (place, length)
    return best[0] + but, best[1]


@given(texts, st.lists(st.integers(1, 30), min_size=1))
def test_the_index_finds_what_a_search_of_the_whole_text_finds(
    text: list[int], pieces: list[int]
) -> None:
    """Read in pieces, as a text grows."""
    index, length = TextIndex(), 0
    for piece in [*pieces, len(text)]:
        length = min(len(text), length + piece)
        assert index.read(text[:length])
        for but in (0, 1):
            expected = brute_force(text[:length], proposals._TRIES, but)
            assert index.find(text[:length], but=but) == expected


def test_the_longest_agreement_wins_and_of_equal_ones_the_nearest() -> None:
    text = [1, 2, 3, 4, 9, 2, 3, 5, 9, 2, 3, 6, 1, 2, 3]
    index = TextIndex()
    index.read(text)
    assert index.find(text) == (2, 3)
    index.read([*text, 7, 2, 3])
    assert index.find([*text, 7, 2, 3]) == (14, 2)


def test_a_long_text_is_read_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "READ_TOKENS", 10)
    text, proposer = [1, 2, 3, 4, 5] * 6, Proposer()
    assert [proposer.propose(text, 4) for _ in range(2)] == [(), ()]
    assert proposer.propose(text, 4) == (1, 2, 3, 4)


@given(texts, st.integers(0, 10))
def test_what_is_proposed_followed_the_same_tokens_before(text: list[int], at_most: int) -> None:
    """Or repeats itself: the text has become periodic. Or it followed another token in the place of
    the newest one, which is new."""
    proposed = Proposer().propose(text, at_most)
    assert len(proposed) <= at_most
    place, length = brute_force(text, proposals._TRIES)
    if not length:
        place, before = brute_force(text, proposals._TRIES, but=1)
        length = before >= 3
    if proposed:
        assert length
    whole = [*text, *proposed]
    assert all(whole[place + 1 + i] == token_id for i, token_id in enumerate(proposed))


def test_what_followed_another_token_is_proposed_behind_a_new_one() -> None:
    # "a": "...", "b": "...", and the next key is new.
    field = [1, 2, 3, 40, 5, 6]
    text = [*field, 90, *field[:3], 41, *field[4:], 91, *field[:3], 42]
    assert Proposer().propose(text, 1) == (5,)
    # Two tokens before it are too little.
    assert Proposer().propose([*field, 90, 2, 3, 42], 1) == ()


def proposed_along(text: list[int], begin: int, at_most: int = 7) -> list[int]:
    """How many tokens are proposed at each place of a text that is written one by one."""
    proposer = Proposer()
    return [len(proposer.propose(text[:end], at_most)) for end in range(begin, len(text))]


def test_proposals_stop_where_they_are_not_taken_and_come_back_where_they_are() -> None:
    # The same token always goes on otherwise than it did before.
    surprising = [token for i in range(60) for token in (1, 100 + i)]
    never = proposed_along(surprising, 2)
    assert sum(never[:20]) > 0
    assert sum(never[-40:]) == 0
    # Nothing was proposed for so long, and what came true all the same has been noticed.
    copied = list(range(200, 260))
    copying = proposed_along([*copied, *surprising, *copied], len(copied) + len(surprising) + 1)
    assert max(copying[-20:]) == 7
    always = proposed_along([1, 2, 3] * 30, 6)
    assert always[-1] == 7


def test_what_is_forced_comes_before_what_the_text_repeats() -> None:
    forced = [(), (50, 51, 52), ()]
    proposer = Proposer(lambda: forced.pop(0))
    text = [1, 2, 3, 4] * 9
    assert proposer.propose(text, 2) == (1, 2)
    assert proposer.propose(text, 2) == (50, 51)
    assert proposer.propose(text, 2) == (1, 2)


class Always(Proposer):
    """Proposes as much as may be."""

    def propose(self, tokens: Sequence[int], at_most: int) -> tuple[int, ...]:
        return tuple(range(at_most))


def scheduler(budget: int = 64, pages: int = 1000, running: int = 32) -> Scheduler:
    return Scheduler(
        PagePool(pages, PAGE), Slots(1), max_running=running, max_tokens_per_step=budget
    )


def decoding(s: Scheduler, count: int, new: int = 50) -> list[Job]:
    """Jobs of one prompt token, which all decode from their first step on."""
    jobs = [job_of(1, new, name=str(number)) for number in range(count)]
    for job in jobs:
        job.proposer = Always()
        s.add(job)
    return jobs


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [7]), (2, [3, 3]), (3, [1, 2, 2]), (6, [0, 0, 0, 0, 1, 1]), (MAX_ROWS, [0] * MAX_ROWS)],
)
def test_what_is_nearly_free_is_shared_in_equal_parts(count: int, expected: list[int]) -> None:
    s = scheduler()
    decoding(s, count)
    chunks = s.schedule()
    assert sorted(len(chunk.proposed) for chunk in chunks) == expected
    assert all(chunk.num_logits == 1 + len(chunk.proposed) for chunk in chunks)


def test_prompts_come_before_proposals_and_a_small_budget_bounds_them() -> None:
    s = scheduler(budget=4)
    decoding(s, 1)
    s.add(job_of(5, 1, name="prompt"))
    rows = {c.job.request.request_id: (c.count, len(c.proposed)) for c in s.schedule()}
    assert rows == {"0": (1, 0), "prompt": (3, 0)}
    alone = scheduler(budget=4)
    decoding(alone, 1)
    assert [len(chunk.proposed) for chunk in alone.schedule()] == [3]


@given(st.integers(1, 12), st.integers(0, 11))
def test_proposals_never_need_more_rows_than_the_request(new: int, generated: int) -> None:
    s = scheduler()
    (job,) = decoding(s, 1, new)
    for _ in range(min(generated, new - 1)):
        (chunk,) = s.schedule()
        job.num_computed += 1
        job.append(0)
    (chunk,) = s.schedule()
    rows = chunk.start + len(chunk.token_ids)
    assert rows <= job.max_len
    assert rows <= len(job.pages) * PAGE
    # The token that is drawn anyway is no proposal.
    assert len(chunk.proposed) == min(MAX_ROWS - 1, new - 1 - job.num_generated)


@pytest.mark.parametrize(("pages", "rows"), [(1, PAGE), (2, PAGE), (3, MAX_ROWS)])
def test_proposals_take_a_page_only_where_those_that_run_leave_one(pages: int, rows: int) -> None:
    s = scheduler(pages=pages)
    (job,) = decoding(s, 1)
    (chunk,) = s.schedule()
    assert len(chunk.token_ids) == rows
    assert len(job.pages) * PAGE == rows
    # A page that was taken for nothing is the next one that the job fills.
    for _ in range(PAGE - 1):
        job.num_computed += 1
        job.append(0)
        s.schedule()
    assert len(job.pages) == rows // PAGE
    s.finish(job)
    assert s.pool.num_free == pages


def test_only_decodes_get_proposals() -> None:
    s = scheduler(budget=2)
    job = job_of(4, 9)
    job.proposer = Always()
    s.add(job)
    assert [len(chunk.proposed) for chunk in s.schedule()] == [0]
    job.num_computed += 2
    assert [len(chunk.proposed) for chunk in s.schedule()] == [0]
