"""Counts of workers add up by digest; what is unknown is forgotten."""

from __future__ import annotations

from remix_runtime.engines.vllm.load import ExpertLoad


def test_ranks_tell_the_same_stages_other_modules_and_time_adds_up() -> None:
    load = ExpertLoad()
    rank, stage = {1: {"up": [2, 1]}}, {1: {"down": [0, 3, 1]}}
    load.add([rank, rank, stage], {1: "a"}, {"a"})
    assert load.totals == {"a": {"up": (2, 1), "down": (0, 3, 1)}}
    before = load.totals
    load.add([{1: {"up": [1, 0, 5]}, 7: {"up": [9]}}], {1: "a", 2: "b"}, {"a", "b"})
    assert load.totals == {"a": {"up": (3, 1, 5), "down": (0, 3, 1)}}
    assert before["a"]["up"] == (2, 1)
    load.add([{2: {"up": [1]}}], {2: "b"}, {"b"})
    assert load.totals == {"b": {"up": (1,)}}
