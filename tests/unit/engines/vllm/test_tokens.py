"""Which tokens belong to which slot, and whose routes are kept."""

from __future__ import annotations

import torch

from remix_runtime.engines.vllm.tokens import LOOK_EVERY, StepTokens
from remix_runtime.engines.vllm.worker import WorkerExtension

JUNK = 77


def step(slots: list[int], loras: list[int | None], *, room: int = 16) -> StepTokens:
    buffer_T = torch.full((room,), JUNK)
    made = StepTokens(buffer_T, num_slots=len(loras))
    buffer_T[: len(slots)] = torch.tensor(slots)
    made.begin_step()
    made.assign(len(slots), loras)
    return made


def test_neighbours_of_one_slot_are_a_run() -> None:
    made = step([0, 0, 2, -1, -1, 0], [11, 12, 13])
    assert made.batch(6).runs == ((0, 2, 0), (2, 3, 2), (3, 5, -1), (5, 6, 0))


def test_padding_is_of_the_base_and_fewer_tokens_are_the_first() -> None:
    made = step([0, 0, 1], [11, 12])
    assert made.batch(6).runs == ((0, 2, 0), (2, 3, 1), (3, 6, -1))
    assert made.batch(2).runs == ((0, 2, 0),)
    assert made.batch(3).runs == ((0, 2, 0), (2, 3, 1))


def test_a_batch_is_made_once_for_all_layers_and_anew_for_the_next_step() -> None:
    made = step([0, 1], [11, 12])
    padded = made.batch(4)
    assert made.batch(4) is padded
    made.begin_step()  # the same tokens again: vLLM assigns nothing
    assert made.batch(4) is padded
    made.slots_T[:2] = torch.tensor([1, 1])
    made.assign(2, [11, 12])
    assert made.batch(4).runs == ((0, 2, 1), (2, 4, -1))


def test_before_the_first_step_everything_is_of_the_base() -> None:
    made = StepTokens(torch.full((8,), JUNK), num_slots=2)
    assert made.batch(5).runs == ((0, 5, -1),)


def test_routes_are_wanted_of_a_recorded_adapter_or_in_one_step_of_many() -> None:
    made = step([0], [11, None])  # an empty slot, as after a start
    wanted = []
    for _ in range(2 * LOOK_EVERY):
        wanted.append(made.wants_routes)
        made.begin_step()
    assert sum(wanted) == 2
    made.record(12)
    assert not made.wants_routes
    made.record(11)
    assert made.wants_routes
    made.take_routes()
    assert not made.wants_routes


def routes(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([row + [-1] * (4 - len(row)) for row in rows], dtype=torch.int32)


def test_a_recording_goes_on_over_chunks_and_leaves_others_out() -> None:
    made = step([0, 1, 1], [11, 12])
    made.record(12)
    made.batch(3)
    made.saw("up", routes([0, 1], [2, 3], [1, 2]))
    made.saw("down", routes([0], [], []))  # the recorded one does not adapt it
    made.slots_T[:2] = torch.tensor([0, -1])
    made.begin_step()
    made.assign(2, [12, 11])  # in another slot now
    made.batch(2)
    made.saw("up", routes([0, 3], []))
    assert made.take_routes() == {"up": [[2, 3], [1, 2], [0, 3]]}
    assert made.take_routes() == {}


def test_experts_are_counted_until_the_counts_are_taken() -> None:
    made = step([0, 1, -1], [11, 12])
    made.batch(3)
    made.saw("up", routes([0, 1], [2], []))
    made.saw("up", routes([1, 5], [2], []))
    assert made.take_load() == {11: {"up": [1, 2, 0, 0, 0, 1]}, 12: {"up": [0, 0, 2]}}
    assert made.take_load() == {}


def test_an_empty_slot_counts_for_nobody() -> None:
    made = step([0, 1], [None, 12])
    made.batch(2)
    made.saw("up", routes([0], [1]))
    assert made.take_load() == {12: {"up": [0, 1]}}


def test_a_worker_answers_for_all_its_steps() -> None:
    """vLLM has one for each kind of module: the language model's and, say, a vision tower's."""
    steps = [step([0], [11]), step([0], [11])]

    class Wrapper:
        def __init__(self, made: StepTokens) -> None:
            self.remix_step = made

    class Manager:
        punica_wrapper_mapping = {str(i): Wrapper(made) for i, made in enumerate(steps)}  # noqa: RUF012

    worker = WorkerExtension()
    worker.model_runner = type("Runner", (), {})()
    worker.model_runner.lora_manager = type("Lora", (), {"_adapter_manager": Manager()})()
    worker.remix_record_routes(11)
    for name, made in zip(("up", "down"), steps, strict=True):
        made.batch(1)
        made.saw(name, routes([1, 2]))
    assert worker.remix_take_routes() == {"up": [[1, 2]], "down": [[1, 2]]}
    for name, made in zip(("up", "down"), steps, strict=True):
        made.saw(name, routes([0]))
    assert worker.remix_expert_load() == {11: {"up": [1], "down": [1]}}
