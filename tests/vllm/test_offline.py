"""ReMix adapters in vLLM's `LLM`, against the readable reference, token for token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import tests.vllm_engines  # noqa: F401  sets what vLLM reads at import
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from tests.engines import complete_all, request
from tests.vllm.conftest import Adapter, World, remix_adapter

pytestmark = pytest.mark.vllm

SLOTS, NEW_TOKENS, BLOCK = 4, 10, 32
MakePrompt = Callable[[int], list[int]]


class Offline:
    """`LLM` in this process. Every adapter has one LoRA id for its life."""

    def __init__(self, base: Path) -> None:
        from vllm import LLM

        self.llm = LLM(
            str(base),
            dtype="float32",
            enforce_eager=True,
            enable_lora=True,
            max_loras=SLOTS,
            max_cpu_loras=SLOTS + 1,
            max_lora_rank=64,
            max_num_seqs=16,
            max_num_batched_tokens=64,
            block_size=BLOCK,
            enable_prefix_caching=True,
        )
        self._ids: dict[Path, int] = {}

    def lora(self, adapter: Adapter | None) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number = self._ids.setdefault(adapter.folder, len(self._ids) + 1)
        return LoRARequest(adapter.folder.name, number, str(adapter.folder))

    def outputs(self, jobs: Sequence[tuple[list[int], Adapter | None]], **params: Any) -> list[Any]:
        return self.llm.generate(
            [{"prompt_token_ids": prompt} for prompt, _ in jobs],
            _sampling(**params),
            lora_request=[self.lora(adapter) for _, adapter in jobs],
            use_tqdm=False,
        )

    def tokens(self, jobs: Sequence[tuple[list[int], Adapter | None]]) -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in self.outputs(jobs)]


def _sampling(**params: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        **{"temperature": 0, "max_tokens": NEW_TOKENS, "ignore_eos": True, **params}
    )


@pytest.fixture(scope="module")
def offline(world: World) -> Iterator[Offline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        yield Offline(world.base)


def expected(world: World, jobs: Sequence[tuple[list[int], Adapter | None]]) -> list[list[int]]:
    base = Adapter(world.base, world.model)
    return [(adapter or base).answer(prompt, NEW_TOKENS) for prompt, adapter in jobs]


async def embedded(
    world: World, jobs: Sequence[tuple[list[int], Adapter | None]]
) -> list[list[int]]:
    engine = EmbeddedEngine(EmbeddedConfig(model=str(world.base)))
    await engine.start()
    digests = {a.folder: (await engine.load_adapter(a.folder)).digest for a in world.remix}
    done = await complete_all(
        engine,
        [
            request(p, a and digests[a.folder], max_tokens=NEW_TOKENS, ignore_eos=True)
            for p, a in jobs
        ],
    )
    await engine.stop()
    return [completion.token_ids for completion in done]


async def test_one_batch_of_everything_with_all_slots_full(
    world: World, offline: Offline, prompt: MakePrompt
) -> None:
    """Base rows too: vLLM's own path on the CPU gives them the last slot's LoRA then."""
    assert len(world.adapters) == SLOTS
    jobs = [(prompt(length), a) for a in (*world.adapters, None) for length in (1, 17, 40)]
    want = expected(world, jobs)
    assert len({tuple(tokens) for tokens in want}) > len(world.adapters)
    assert offline.tokens(jobs) == want
    mixtures = [job for job in jobs if job[1] not in world.lora]
    assert await embedded(world, mixtures) == expected(world, mixtures)


def test_adapters_come_back_after_they_were_evicted(
    world: World, offline: Offline, prompt: MakePrompt, tmp_path: Path
) -> None:
    """From the slots and, with more adapters than the host holds, from memory."""
    more = [remix_adapter(tmp_path / f"{seed}", n=3, k=2, r=2, seed=seed) for seed in (7, 8, 9)]
    everything = [*world.adapters, *more]
    jobs = [(prompt(9), adapter) for adapter in (*everything, *reversed(everything), None)]
    want = expected(world, jobs)
    assert [offline.tokens([job])[0] for job in jobs] == want
    assert offline.tokens(jobs) == want


def test_cached_prefixes_belong_to_their_adapter(
    world: World, offline: Offline, prompt: MakePrompt
) -> None:
    shared = prompt(3 * BLOCK + 5)
    jobs = [(shared, adapter) for adapter in (*world.adapters, None)]
    want = expected(world, jobs)
    assert offline.tokens(jobs) == want
    again = offline.outputs(jobs)
    assert [list(output.outputs[0].token_ids) for output in again] == want
    assert [output.num_cached_tokens for output in again] == [3 * BLOCK] * len(jobs)


def test_several_choices_of_one_prompt(world: World, offline: Offline, prompt: MakePrompt) -> None:
    jobs = [(prompt(11), adapter) for adapter in (*world.adapters, None)]
    for output, want in zip(
        offline.outputs(jobs, n=3, temperature=1, top_k=1), expected(world, jobs), strict=True
    ):
        assert [list(choice.token_ids) for choice in output.outputs] == [want] * 3


def test_a_load_beside_a_running_request_changes_nothing_for_it(
    world: World, offline: Offline, prompt: MakePrompt, tmp_path: Path
) -> None:
    """vLLM #47724: others' loads moved adapters between slots under a running request."""
    mine, engine = world.remix[0], offline.llm.llm_engine
    job = (prompt(9), mine)
    engine.add_request(
        "mine", {"prompt_token_ids": job[0]}, _sampling(), lora_request=offline.lora(mine)
    )
    found: list[int] = []
    for seed in range(20, 20 + SLOTS + 1):
        for output in engine.step():
            found = list(output.outputs[0].token_ids)
        other = remix_adapter(tmp_path / f"{seed}", n=3, k=2, r=2, seed=seed)
        engine.add_lora(offline.lora(other))
    while engine.has_unfinished_requests():
        for output in engine.step():
            found = list(output.outputs[0].token_ids)
    assert [found] == expected(world, [job])


@pytest.mark.parametrize("way", ["another id", "the same id, in place"])
def test_new_weights_under_an_old_name_meet_no_old_prefix(
    world: World, offline: Offline, prompt: MakePrompt, tmp_path: Path, way: str
) -> None:
    """vLLM #42125: name and path were all that cached blocks were kept by."""
    from vllm.lora.request import LoRARequest

    folder, number = tmp_path / "current", 900 if way == "another id" else 950
    old = remix_adapter(tmp_path / "old", n=4, k=2, r=4, seed=11)
    new = remix_adapter(tmp_path / "new", n=4, k=2, r=4, seed=12)
    ids, engine = prompt(2 * BLOCK + 3), offline.llm.llm_engine

    def tokens(lora: LoRARequest) -> list[int]:
        (output,) = offline.llm.generate(
            [{"prompt_token_ids": ids}], _sampling(), lora_request=lora, use_tqdm=False
        )
        return list(output.outputs[0].token_ids)

    shutil.copytree(old.folder, folder)
    first = LoRARequest("current", number, str(folder))
    engine.add_lora(first)
    assert tokens(first) == old.answer(ids, NEW_TOKENS)
    shutil.rmtree(folder)
    shutil.copytree(new.folder, folder)
    if way == "another id":
        engine.remove_lora(number)
        second = LoRARequest("current", number + 1, str(folder))
        engine.add_lora(second)
    else:
        second = LoRARequest("current", number, str(folder))
        engine.add_lora(LoRARequest("current", number, str(folder), load_inplace=True))
    assert tokens(second) == new.answer(ids, NEW_TOKENS) != old.answer(ids, NEW_TOKENS)


@pytest.mark.parametrize("damage", ["a tensor is missing", "other base", "too many rows"])
def test_a_bad_adapter_is_refused_with_its_reason_and_others_go_on(
    world: World, offline: Offline, prompt: MakePrompt, tmp_path: Path, damage: str
) -> None:
    bad = tmp_path / "bad"
    match damage:
        case "a tensor is missing":
            shutil.copytree(world.remix[0].folder, bad)
            (bad / "adapter_model.safetensors").unlink()
            reason = "adapter_model.safetensors"
        case "other base":
            from remix_runtime.adapter.checkpoint import write_checkpoint
            from tests.models import random_checkpoint, tiny_model

            other = random_checkpoint(tiny_model("gemma2"), target_modules=("o_proj",))
            write_checkpoint(bad, other.config, other.layers, readme="random")
            reason = "expected"
        case _:
            remix_adapter(bad, n=9, k=2, r=8)
            reason = "max_lora_rank"
    with pytest.raises(Exception, match=reason):
        offline.llm.llm_engine.add_lora(offline.lora(Adapter(bad, world.model)))
    jobs = [(prompt(5), adapter) for adapter in (*world.adapters, None)]
    assert offline.tokens(jobs) == expected(world, jobs)
