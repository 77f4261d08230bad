"""Counts of workers add up by digest; what is unknown is forgotten."""

from __future__ import annotations

from pathlib import Path

from remix_runtime.engines.vllm.load import ExpertLoad
from tests.unit.engines.vllm.stub import started


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


async def test_an_adapter_has_a_number_for_each_expert_while_it_is_loaded(
    base: Path, folders: list[Path]
) -> None:
    engine, _ = await started(base)
    info = await engine.load_adapter(folders[0])
    assert engine.expert_load(info.digest) == {}
    numbers, known = engine._adapters.numbers, engine._adapters.digests
    (number,) = numbers
    engine._load.add([{number: {"up": [3, 1]}}], numbers, known)
    expected = (3, 1) + (0,) * (info.num_experts - 2)
    assert engine.expert_load(info.digest) == {"up": expected}
    await engine.unload_adapter(info.digest)
    assert engine.expert_load(info.digest) == {}
    await engine.load_adapter(folders[0])
    assert engine.expert_load(info.digest) == {}, "counts are since the load"
    await engine.stop()
