"""The size of a value's JSON is that of what `json.dumps` writes, found in short calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.wire.json_size import _AT_ONCE, json_size

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=200
)


def written(value: Any, *, ensure_ascii: bool) -> int:
    return len(json.dumps(value, ensure_ascii=ensure_ascii))


@given(VALUES, st.booleans())
def test_any_value(value: Any, ensure_ascii: bool) -> None:
    size = written(value, ensure_ascii=ensure_ascii)
    assert json_size(value, ensure_ascii=ensure_ascii) == size


@given(VALUES, st.booleans(), st.integers(0, 1000))
def test_any_limit(value: Any, ensure_ascii: bool, limit: int) -> None:
    size = written(value, ensure_ascii=ensure_ascii)
    for at_most in (limit, size - 1, size):
        found = json_size(value, ensure_ascii=ensure_ascii, at_most=at_most)
        assert found == size if size <= at_most else found > at_most


@pytest.mark.parametrize("count", [_AT_ONCE - 1, _AT_ONCE, _AT_ONCE + 1, 10 * _AT_ONCE])
def test_many_values(count: int) -> None:
    texts = {f"\u00e9{number}": "\n\U0001f30d" for number in range(count)}
    shared = [texts] * 3
    for value in ([1.5] * count, [10**4000] * count, texts, shared, [[]] * count, [{}] * count):
        for ensure_ascii in (True, False):
            size = written(value, ensure_ascii=ensure_ascii)
            assert json_size(value, ensure_ascii=ensure_ascii) == size


def test_any_depth() -> None:
    depth = 100_000
    value: Any = 1
    for _ in range(depth):
        value = [{"a": value}]
    assert json_size(value) == depth * len('[{"a": }]') + 1


def test_no_look_at_what_is_beyond_the_limit() -> None:
    endless: list[Any] = []
    endless += [1, endless]
    assert json_size(endless, at_most=1000) > 1000


def test_a_call_writes_few_values(monkeypatch: pytest.MonkeyPatch) -> None:
    most, encode = 0, json.JSONEncoder.encode

    def watched(encoder: json.JSONEncoder, values: Any) -> str:
        nonlocal most
        most = max(most, len(values))
        assert not any(isinstance(value, list | dict) for value in values)
        return encode(encoder, values)

    monkeypatch.setattr(json.JSONEncoder, "encode", watched)
    json_size({str(number): [number] * number for number in range(100)})
    assert most == _AT_ONCE
