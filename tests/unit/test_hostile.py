"""What the trial of hostile clients measures, and what their catalogue holds."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.hostile.acts import CHAT, Entry, chat, post
from tests.hostile.catalogue import ENTRIES, GROUPS
from tests.hostile.load import Measured, Window, beside, inside
from tests.hostile.trial import Compared, Run
from tests.hostile.wire import outcome

WINDOWS = [Window(0, 5), Window(10, 15)]
SPANS = [(-1, 0.5), (-1, 2), (4, 10), (6, 1), (6, 5), (14, 9), (15, 1)]


def test_beside_a_window_is_what_went_on_in_it_for_a_moment() -> None:
    assert beside(SPANS, WINDOWS) == [2, 10, 5, 9]


def test_inside_a_window_is_what_ended_in_it_or_soon_after() -> None:
    spans = [(-1, 2), (1, 2), (4.5, 1), (4.5, 2), (6, 1), (10, 1), (14.9, 1)]
    assert inside(spans, WINDOWS, slack=1) == [2, 1, 1, 1]


def run_of(ended: dict[str, int], *, at: float = 0.0) -> Run:
    entry = Entry("some", post(CHAT, chat()), "400 at n", ("closed",))
    solo, hostile = Window(at, at + 5), Window(at + 6, at + 10)
    return Run(entry, "group", solo, hostile, Counter(ended), 1, 1)


@pytest.mark.parametrize(
    ("ended", "faults"),
    [
        ({"400 at n": 2, "closed": 1, "429 rate_limit_exceeded": 5}, 0),
        ({"closed": 3}, 1),
        ({"400 at n": 2, "hangs": 1}, 1),
        ({"200": 1}, 2),
    ],
)
def test_ends_that_are_not_stated_are_faults(ended: dict[str, int], faults: int) -> None:
    assert len(run_of(ended).faults) == faults


@pytest.mark.parametrize(("seconds", "is_bearable"), [(0.19, True), (0.21, False), (60.0, False)])
def test_what_the_load_felt_is_compared(seconds: float, is_bearable: bool) -> None:
    """One that began before the hostile client and went on beside it counts."""
    quiet = [(at / 10, 0.1) for at in range(50)]
    measured = Measured(first=[*quiet, (5.9, seconds)], between=[*quiet, (7.0, 0.1)])
    found = Compared.of(measured, [run_of({})])
    assert found.first == pytest.approx(10 * seconds)
    assert found.between == pytest.approx(1.0)
    assert found.is_bearable is is_bearable


def test_where_nothing_came_nothing_was_borne() -> None:
    quiet = [(at / 10, 0.1) for at in range(50)]
    assert Compared.of(Measured(first=quiet, between=quiet), [run_of({})]).first == math.inf


ERROR = b'{"error":{"message":"x","type":"t","param":%s,"code":%s}}'
ANSWER = b"HTTP/1.1 %s X\r\ncontent-length: %d\r\n\r\n%s"


def answer(status: bytes, body: bytes) -> bytes:
    return ANSWER % (status, len(body), body)


@pytest.mark.parametrize(
    ("came", "end"),
    [
        (b"", "closed"),
        (answer(b"200", b"{}"), "200"),
        (answer(b"200", b"{}")[:-1], "200, cut"),
        (answer(b"400", ERROR % (b'"n"', b"null")), "400 at n"),
        (answer(b"400", ERROR % (b'"stop[0]"', b'"too_long"')), "400 too_long at stop[0]"),
        (answer(b"413", ERROR % (b"null", b'"body_too_large"')), "413 body_too_large"),
        (answer(b"404", ERROR % (b"null", b"null")), "404 t"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"200", b"{}"), "200"),
        (answer(b"401", ERROR % (b"null", b'"k"')) + answer(b"200", b"{}"), "401 k"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\ndata:", "200, cut"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", "200"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\n"
            b"data: " + ERROR % (b"null", b'"busy"') + b"\n\n\r\n0\r\n\r\n",
            "200, error busy",
        ),
    ],
)
def test_outcomes(came: bytes, end: str) -> None:
    assert outcome(came) == end


def test_the_catalogue_has_many_kinds() -> None:
    assert len(ENTRIES) >= 60
    assert min(map(len, GROUPS.values())) > 5
    for entry in ENTRIES.values():
        assert entry.ends not in entry.may
