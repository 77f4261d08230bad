from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.live.quotas import Admission, Quotas, RateLimitedError, duration
from server.tenancy.records import Quota


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(clock)


def admitted(quotas: Quotas, quota: Quota, tenant: str = "a") -> bool:
    """Whether one short request gets in."""
    try:
        with quotas.admit(tenant, quota):
            return True
    except RateLimitedError:
        return False


def reserved(admission: Admission, tokens: int) -> bool:
    try:
        admission.reserve_tokens(tokens)
    except RateLimitedError:
        return False
    return True


def test_requests_are_counted_by_the_minute_and_come_back_continuously(
    quotas: Quotas, clock: Clock
) -> None:
    quota = Quota(requests_per_minute=6)
    assert [admitted(quotas, quota) for _ in range(8)] == [True] * 6 + [False] * 2
    clock.now += 10.001
    assert [admitted(quotas, quota) for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [admitted(quotas, quota) for _ in range(8)] == [True] * 6 + [False] * 2


def test_a_refusal_tells_when_to_try_again(quotas: Quotas, clock: Clock) -> None:
    quota = Quota(requests_per_minute=6)
    while admitted(quotas, quota):
        pass
    with pytest.raises(RateLimitedError, match="requests: limit 6 per minute") as refused:
        quotas.admit("a", quota)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.retry_after == pytest.approx(10, abs=0.01)
    assert refused.value.headers == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += refused.value.retry_after - 0.01
    assert not admitted(quotas, quota)
    clock.now += 0.01
    assert admitted(quotas, quota)


def test_places_are_given_back_once_whatever_the_end(quotas: Quotas) -> None:
    quota = Quota(max_concurrent=2)
    with quotas.admit("a", quota) as first:
        second = quotas.admit("a", quota)
        assert not admitted(quotas, quota)
        with pytest.raises(ZeroDivisionError), second:
            raise ZeroDivisionError
        assert admitted(quotas, quota)
    first.__exit__(None, None, None)
    with quotas.admit("a", quota), quotas.admit("a", quota):
        with pytest.raises(RateLimitedError, match="2 sequences are running") as refused:
            quotas.admit("a", quota)
        assert refused.value.retry_after == 1


def test_a_place_is_a_sequences(quotas: Quotas) -> None:
    quota = Quota(max_concurrent=5)
    with quotas.admit("a", quota) as first:
        first.take_places(3)
        with quotas.admit("a", quota) as second:
            with pytest.raises(RateLimitedError, match=r"3 .* the limit is 5, and .* has 3"):
                second.take_places(3)
            second.take_places(2)
            assert not admitted(quotas, quota)
        with quotas.admit("a", quota), quotas.admit("a", quota):
            assert not admitted(quotas, quota)
    with quotas.admit("a", quota) as alone:
        alone.take_places(5)
        with pytest.raises(RateLimitedError):
            alone.take_places(6)
        assert not admitted(quotas, quota)
    assert quotas._usage["a"].running == 0


def test_what_was_tokenized_is_used_whatever_becomes_of_it(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=1000)
    with quotas.admit("a", quota) as refused:
        refused.reserve_tokens(10)
        refused.tokenized(3000)
        with pytest.raises(RateLimitedError):
            refused.reserve_tokens(3000)
    with quotas.admit("a", quota) as left_in_the_queue:
        assert left_in_the_queue.headers["x-ratelimit-remaining-tokens"] == "700"
        left_in_the_queue.reserve_tokens(600)
        left_in_the_queue.tokenized(500)
        left_in_the_queue.settle(0)
        assert left_in_the_queue.headers["x-ratelimit-remaining-tokens"] == "650"
    with quotas.admit("a", quota) as served:
        served.reserve_tokens(5)
        served.tokenized(500)
        served.reserve_tokens(600)
        served.settle(550)
        assert served.headers["x-ratelimit-remaining-tokens"] == "100"
    with quotas.admit("a", quota) as huge:
        huge.reserve_tokens(1)
        huge.tokenized(10**6)
    assert not reserved(quotas.admit("a", quota), 1), "nothing is left, and nothing is owed"


def test_who_had_more_tokens_than_the_least_hears_of_all_of_them(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=100)
    for tenant, tokens, told in (("a", 90, "try again in 48"), ("b", 101, "more than the limit")):
        with quotas.admit(tenant, quota) as others, quotas.admit(tenant, quota) as admission:
            others.reserve_tokens(30)
            admission.reserve_tokens(60)
            with pytest.raises(RateLimitedError, match=f"requested {tokens}.*{told}"):
                admission.reserve_tokens(tokens)


def test_text_is_tokenized_only_if_its_answer_may_come(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=100)
    with quotas.admit("a", quota) as admission:
        with pytest.raises(RateLimitedError, match="requested 101"):
            admission.reserve_tokens(1, later=100)
        admission.reserve_tokens(1, later=99)
        assert admission.headers["x-ratelimit-remaining-tokens"] == "99"


def test_a_request_that_gets_no_place_is_not_counted(quotas: Quotas) -> None:
    quota = Quota(max_concurrent=1, requests_per_minute=2)
    with quotas.admit("a", quota):
        assert not any(admitted(quotas, quota) for _ in range(9))
    assert [admitted(quotas, quota) for _ in range(2)] == [True, False]


def test_a_request_that_is_not_counted_gets_no_place(quotas: Quotas, clock: Clock) -> None:
    quota = Quota(max_concurrent=2, requests_per_minute=1)
    assert [admitted(quotas, quota) for _ in range(5)] == [True] + [False] * 4
    clock.now += 60.001  # the millisecond that `retry_after` has for rounding
    assert admitted(quotas, quota)


def test_tenants_do_not_share(quotas: Quotas) -> None:
    quota = Quota(max_concurrent=1, requests_per_minute=1, tokens_per_minute=10)
    with quotas.admit("a", quota) as mine, quotas.admit("b", quota) as theirs:
        mine.reserve_tokens(10)
        theirs.reserve_tokens(10)


def test_no_quota_is_no_limit_and_no_header(quotas: Quotas) -> None:
    with ExitStack() as stack:
        for _ in range(1000):
            admission = stack.enter_context(quotas.admit("a", Quota()))
            admission.reserve_tokens(10**12)
    assert admission.headers == {}


def test_tokens_are_reserved_and_what_was_not_used_comes_back(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=100)
    with quotas.admit("a", quota) as first, quotas.admit("a", quota) as second:
        first.reserve_tokens(80)
        with pytest.raises(RateLimitedError, match="tokens: limit 100 per minute, remaining 20"):
            second.reserve_tokens(50)
        first.settle(30)
        second.reserve_tokens(50)
        second.settle(50)
        first.settle(0)
        assert second.headers["x-ratelimit-remaining-tokens"] == "20"
        assert second.headers["x-ratelimit-reset-tokens"] == "48s"


def test_a_request_that_asks_for_more_than_the_limit_hears_so(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=100)
    with quotas.admit("a", quota) as admission:
        with pytest.raises(RateLimitedError, match="alone is more than the limit") as refused:
            admission.reserve_tokens(101)
        assert refused.value.retry_after == 60
        admission.reserve_tokens(100)


def test_tokens_that_nobody_settled_are_used(quotas: Quotas) -> None:
    quota = Quota(tokens_per_minute=100)
    with quotas.admit("a", quota) as first:
        first.reserve_tokens(80)
    first.settle(0)
    with quotas.admit("a", quota) as second:
        assert second.headers["x-ratelimit-remaining-tokens"] == "20"


def test_what_refilled_meanwhile_does_not_come_back_a_second_time(
    quotas: Quotas, clock: Clock
) -> None:
    quota = Quota(tokens_per_minute=60)
    with quotas.admit("a", quota) as long, quotas.admit("a", quota) as short:
        long.reserve_tokens(60)
        clock.now += 40
        short.reserve_tokens(40)
        long.settle(0)
        assert short.headers["x-ratelimit-remaining-tokens"] == "20"


def test_a_new_limit_holds_from_the_next_request_on_and_what_is_used_stays_used(
    quotas: Quotas,
) -> None:
    assert [admitted(quotas, Quota(requests_per_minute=2)) for _ in range(3)][-1] is False
    more = Quota(requests_per_minute=5)
    assert [admitted(quotas, more) for _ in range(4)] == [True, True, True, False]
    assert not admitted(quotas, Quota(requests_per_minute=4))
    assert all(admitted(quotas, Quota()) for _ in range(9))
    assert admitted(quotas, Quota(requests_per_minute=1))


def test_a_lower_limit_bounds_refunds_too(quotas: Quotas) -> None:
    with quotas.admit("a", Quota(tokens_per_minute=100)) as admission:
        admission.reserve_tokens(100)
        with quotas.admit("a", Quota(tokens_per_minute=10)) as other:
            admission.settle(0)
            assert other.headers["x-ratelimit-remaining-tokens"] == "10"


def test_a_tenant_is_forgotten_only_when_idle_and_full(quotas: Quotas, clock: Clock) -> None:
    quota = Quota(requests_per_minute=1, tokens_per_minute=60)
    running = quotas.admit("running", Quota(max_concurrent=1))
    for number in range(1000):
        assert admitted(quotas, quota, f"t{number}")
    clock.now += 59
    assert admitted(quotas, quota, "late")
    clock.now += 2
    assert admitted(quotas, quota, "sweeps")
    assert set(quotas._usage) == {"running", "late", "sweeps"}
    assert not admitted(quotas, quota, "late")
    assert not admitted(quotas, Quota(max_concurrent=1), "running")
    with running:
        pass
    assert admitted(quotas, Quota(max_concurrent=1), "running")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *[(0, "0s"), (0.02, "20ms"), (0.0001, "1ms"), (0.9999, "1s"), (1, "1s"), (7.66, "7.66s")],
        *[(59.9999, "1m0s"), (90.951, "1m30.951s"), (360, "6m0s")],
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@dataclass
class Call:
    """One request as the plain model sees it."""

    at: float
    admission: Admission
    reserved: int = 0
    used: int = 0
    settled: bool = False


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.sampled_from([0.0, 10.0, 30.0, 60.0]) | st.floats(0, 90)),
        st.tuples(st.just("start"), st.sampled_from([1.0, 0.5]) | st.floats(0, 1)),
        # The oldest or the newest one; of what it reserved, none, all or a share.
        st.tuples(st.sampled_from(["settle oldest", "settle newest"]), st.floats(0, 1)),
        st.tuples(st.sampled_from(["leave oldest", "leave newest"]), st.just(0.0)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(
    steps=STEPS,
    requests=st.integers(1, 10),
    tokens=st.integers(1, 100),
    places=st.integers(1, 5),
)
def test_no_window_sees_more_than_its_limit_whatever_is_reserved_settled_and_refused(
    steps: list[tuple[str, float]], requests: int, tokens: int, places: int
) -> None:
    clock = Clock()
    quotas = Quotas(clock)
    quota = Quota(requests_per_minute=requests, tokens_per_minute=tokens, max_concurrent=places)
    calls: list[Call] = []
    running: list[Call] = []
    for step, value in steps:
        if step == "wait":
            clock.now += value
        elif step == "start":
            try:
                call = Call(clock.now, quotas.admit("a", quota))
            except RateLimitedError:
                continue
            calls.append(call)
            running.append(call)
            wanted = round(value * tokens)
            if reserved(call.admission, wanted):
                call.reserved = call.used = wanted
        elif running:
            call = running[0 if step.endswith("oldest") else -1]
            if step.startswith("settle"):
                before = int(call.admission.headers["x-ratelimit-remaining-tokens"])
                used = round(value * call.reserved)
                call.admission.settle(used)
                after = int(call.admission.headers["x-ratelimit-remaining-tokens"])
                assert before <= after <= min(before + call.reserved + 1, tokens)
                if not call.settled:
                    call.settled, call.used = True, used
            else:
                running.remove(call)
                call.admission.__exit__(None, None, None)
        assert len(running) <= places
    for first, start in enumerate(calls):
        window = calls[first:]
        for last, end in enumerate(window, start=1):
            seconds = end.at - start.at
            assert last <= requests * (1 + seconds / 60) + 1e-6
            used = sum(call.used for call in window[:last])
            assert used <= tokens * (1 + seconds / 60) + 1e-6
    for call in running:
        call.admission.__exit__(None, None, None)
    clock.now += 60.001  # the millisecond that `retry_after` has for rounding
    with ExitStack() as stack:
        for _ in range(min(places, requests)):
            stack.enter_context(quotas.admit("a", quota))
        assert not admitted(quotas, quota)


@given(limit=st.integers(1, 10**12), share=st.floats(0, 1), start=st.floats(0, 1e8))
def test_who_waits_as_long_as_told_is_let_in(limit: int, share: float, start: float) -> None:
    clock = Clock()
    clock.now = start
    quotas = Quotas(clock)
    wanted = max(1, int(limit * share))
    with quotas.admit("a", Quota(tokens_per_minute=limit)) as admission:
        admission.reserve_tokens(limit)
        admission.settle(limit)
        with pytest.raises(RateLimitedError) as refused:
            admission.reserve_tokens(wanted)
        clock.now += refused.value.retry_after
        admission.reserve_tokens(wanted)
