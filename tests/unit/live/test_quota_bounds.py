"""Quotas to the last unit: what exactly fits, what a refusal says, and what comes back."""

from __future__ import annotations

from functools import partial

import pytest

from server.live.quotas import Admission, Quotas, RateLimitedError
from server.tenancy.records import Quota
from tests.unit.live.conftest import StoppedClock

TOKENS = Quota(tokens_per_minute=60)
"""One a second."""


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def quotas(clock: StoppedClock) -> Quotas:
    return Quotas(clock)


def left(admission: Admission) -> int:
    return int(admission.headers["x-ratelimit-remaining-tokens"])


def test_a_refusal_for_requests_says_all_of_it(quotas: Quotas) -> None:
    quota = Quota(requests_per_minute=3)
    for _ in range(3):
        quotas.admit("a", quota)
    with pytest.raises(RateLimitedError) as refused:
        quotas.admit("a", quota)
    assert str(refused.value) == (
        "Rate limit reached for requests: limit 3 per minute, remaining 0, requested 1. "
        "Please try again in 20.001s."
    )


@pytest.mark.parametrize(
    ("held", "wanted", "retry_after", "end"),
    [
        (0, 60, 10.001, "Please try again in 10.001s."),  # the limit itself, which will be there
        (20, 60, 30.001, "Please try again in 30.001s."),  # by then it holds nothing
        (0, 61, 60, "This request alone is more than the limit: it must have fewer tokens."),
    ],
)
def test_a_refusal_for_tokens_says_all_of_it(
    quotas: Quotas, held: int, wanted: int, retry_after: float, end: str
) -> None:
    with quotas.admit("a", TOKENS) as admission, quotas.admit("a", TOKENS) as other:
        other.reserve_tokens(10)
        admission.reserve_tokens(held)
        with pytest.raises(RateLimitedError) as refused:
            admission.reserve_tokens(wanted)
    assert refused.value.retry_after == pytest.approx(retry_after)
    assert str(refused.value) == (
        f"Rate limit reached for tokens: limit 60 per minute, remaining {50 - held}, "
        f"requested {wanted}. {end}"
    )


@pytest.mark.parametrize(
    ("is_another", "message"),
    [
        (True, "1 sequences are running, the limit is 1."),
        (False, "0 sequences are running, the limit is 1, and this request has 2."),
    ],
)
def test_a_refusal_for_places_says_all_of_it_with_the_other_limits(
    quotas: Quotas, is_another: bool, message: str
) -> None:
    quota = Quota(max_concurrent=1, requests_per_minute=2, tokens_per_minute=60)
    admission = quotas.admit("a", quota)
    more = partial(quotas.admit, "a", quota) if is_another else partial(admission.take_places, 2)
    with pytest.raises(RateLimitedError) as refused:
        more()
    assert str(refused.value) == message
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "30s",
        "x-ratelimit-limit-tokens": "60",
        "x-ratelimit-remaining-tokens": "60",
        "x-ratelimit-reset-tokens": "0s",
    }


def test_places_are_checked_before_requests_and_requests_before_a_place_is_taken(
    quotas: Quotas,
) -> None:
    quota = Quota(max_concurrent=1, requests_per_minute=1)
    with (
        quotas.admit("a", quota),
        pytest.raises(RateLimitedError, match="sequences are running"),
    ):
        quotas.admit("a", quota)
    for _ in range(2):
        with pytest.raises(RateLimitedError, match="for requests"):
            quotas.admit("a", quota)


def test_no_more_is_reserved_by_asking_for_less(quotas: Quotas) -> None:
    with quotas.admit("a", TOKENS) as admission:
        for tokens in (30, 30, 10):
            admission.reserve_tokens(tokens)
            assert left(admission) == 30
        admission.settle(0)
        assert left(admission) == 60


def test_a_part_of_a_token_is_none(quotas: Quotas, clock: StoppedClock) -> None:
    with quotas.admit("a", TOKENS) as admission:
        admission.reserve_tokens(60)
        clock.now += 1.5
        assert left(admission) == 1
        assert admission.headers["x-ratelimit-reset-tokens"] == "58.5s"


async def test_tokenizing_costs_a_tenth_rounded_up_and_adds_up(quotas: Quotas) -> None:
    with quotas.admit("a", TOKENS) as admission:
        await admission.obtain_tokenizing(101)
        assert left(admission) == 49
        admission.tokenized(60)
        admission.tokenized(60)
        admission.settle(0)
        assert left(admission) == 60 - 12
    with quotas.admit("a", TOKENS) as admission, pytest.raises(RateLimitedError):
        await admission.obtain_tokenizing(481)


async def test_tokenizing_without_a_limit_costs_nothing(quotas: Quotas) -> None:
    with quotas.admit("a", Quota()) as admission:
        await admission.obtain_tokenizing(10**12)
        admission.tokenized(10**12)
        admission.settle(0)
        assert admission.headers == {}


@pytest.mark.parametrize("seconds", [0.5, 1, 40])
def test_what_refilled_is_taken_from_the_refund_however_little_it_is(
    quotas: Quotas, clock: StoppedClock, seconds: float
) -> None:
    with quotas.admit("a", TOKENS) as long, quotas.admit("a", TOKENS) as short:
        long.reserve_tokens(60)
        clock.now += seconds
        taken = int(seconds)
        short.reserve_tokens(taken)
        long.settle(0)
        assert left(short) == 60 - taken
        short.settle(0)
        assert left(short) == 60


@pytest.mark.parametrize("newest_first", [False, True])
def test_the_oldest_reservation_pays_for_what_refilled(
    quotas: Quotas, clock: StoppedClock, newest_first: bool
) -> None:
    with (
        quotas.admit("a", TOKENS) as old,
        quotas.admit("a", TOKENS) as new,
        quotas.admit("a", TOKENS) as other,
    ):
        old.reserve_tokens(30)
        new.reserve_tokens(30)
        clock.now += 40
        other.reserve_tokens(40)
        assert left(other) == 0
        back = [(old, 0), (new, 20)]
        for admission, expected in reversed(back) if newest_first else back:
            before = left(other)
            admission.settle(0)
            assert left(other) - before == expected


def test_a_reservation_that_grew_can_come_back_whole(quotas: Quotas) -> None:
    with quotas.admit("a", TOKENS) as admission:
        admission.reserve_tokens(20)
        admission.reserve_tokens(50)
        assert left(admission) == 10
        admission.settle(5)
        assert left(admission) == 55


def test_idle_tenants_are_forgotten_once_a_minute(quotas: Quotas, clock: StoppedClock) -> None:
    quota = Quota(requests_per_minute=1)
    for seconds, tenant, known in (
        (0, "a", {"a"}),
        (59, "b", {"a", "b"}),
        (1, "c", {"b", "c"}),  # a has its request back, b not yet
        (59, "d", {"b", "c", "d"}),
        (1, "e", {"d", "e"}),
    ):
        clock.now += seconds
        with quotas.admit(tenant, quota):
            pass
        assert set(quotas._usage) == known


def test_a_tenant_whose_tokens_are_not_back_is_remembered(
    quotas: Quotas, clock: StoppedClock
) -> None:
    with quotas.admit("a", TOKENS) as admission:
        clock.now += 30
        admission.reserve_tokens(60)
    clock.now += 30
    quotas.admit("b", TOKENS)
    assert left(quotas.admit("a", TOKENS)) == 30


def test_another_attempt_has_what_the_first_one_reserved(quotas: Quotas) -> None:
    with quotas.admit("a", TOKENS) as admission, quotas.admit("a", TOKENS) as other:
        admission.reserve_tokens(60)
        admission.keep_reserved(25)
        with pytest.raises(RateLimitedError):
            other.reserve_tokens(1)
        admission.reserve_tokens(20, later=40)
        admission.reserve_tokens(60)
        with pytest.raises(RateLimitedError, match="requested 61"):
            admission.reserve_tokens(20, later=41)
        admission.settle(10)
        assert left(admission) == 50


def test_where_no_other_attempt_settles_it_what_the_first_one_used_is_paid(quotas: Quotas) -> None:
    with quotas.admit("a", TOKENS) as admission:
        admission.reserve_tokens(60)
        admission.keep_reserved(25)
    assert left(admission) == 35
