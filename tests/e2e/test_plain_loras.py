"""Plain LoRAs in one batch with mixtures and the base: each answers as PEFT itself does."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import read_checkpoint, write_checkpoint
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from tests.engines import complete, complete_all, request
from tests.loras import LORAS, with_lora, write_lora
from tests.models import MLP, random_checkpoint, save_tiny_base, tiny_model
from tests.reference import greedy, with_adapter

NEW_TOKENS = 12
PROMPTS = ([5, 17, 99, 3, 42], [7], list(range(100, 120)))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
async def test_same_tokens_as_peft_beside_mixtures_and_the_base(
    family: str, tmp_path: Path
) -> None:
    await check_tokens(family, tmp_path)


async def test_the_pytorch_path_has_the_same_tokens(
    tmp_path: Path, without_native_kernels: None
) -> None:
    await check_tokens("llama", tmp_path)


async def check_tokens(family: str, root: Path) -> None:
    folders, models = [], [tiny_model(family)]
    for seed, (name, (settings, dtype)) in enumerate(LORAS.items()):
        folders.append(write_lora(root / name, family, settings, dtype, seed=seed))
        models.append(with_lora(family, folders[-1]))
    for seed, (n, k, r) in enumerate([(8, 4, 8), (3, 1, 5)]):
        made = random_checkpoint(tiny_model(family), n=n, k=k, r=r, target_modules=MLP, seed=seed)
        folders.append(root / f"remix-{seed}")
        write_checkpoint(folders[-1], made.config, made.layers, readme="random")  # type: ignore[arg-type]
        models.append(tiny_model(family))
        with_adapter(models[-1], read_checkpoint(folders[-1]))
    base = save_tiny_base(root / "base", family)
    engine = EmbeddedEngine(EmbeddedConfig(model=str(base), max_tokens_per_step=24, max_running=17))
    await engine.start()
    try:
        infos = [await engine.load_adapter(folder) for folder in folders]
        check_infos(infos)
        digests = [None, *(info.digest for info in infos)]
        jobs = [
            (request(prompt, digest, max_tokens=NEW_TOKENS, ignore_eos=True), i)
            for i, digest in enumerate(digests)
            for prompt in PROMPTS
        ]
        expected = [greedy(models[i], list(item.prompt_token_ids), NEW_TOKENS) for item, i in jobs]
        assert len({tuple(tokens) for tokens in expected}) == len(jobs), "adapters matter"
        order = list(range(len(jobs)))
        random.Random(0).shuffle(order)
        crowd = await complete_all(engine, [jobs[i][0] for i in order])
        assert [done.token_ids for done in crowd] == [expected[i] for i in order]
        alone = request(PROMPTS[0], digests[1], max_tokens=NEW_TOKENS, ignore_eos=True)
        assert (await complete(engine, alone)).token_ids == expected[len(PROMPTS)]
    finally:
        await engine.stop()


def check_infos(infos: list[AdapterInfo]) -> None:
    loras = dict(zip(LORAS, infos, strict=False))
    assert {(info.num_experts, info.top_k) for info in loras.values()} == {(1, 1)}
    largest = {name: settings["r"] for name, (settings, _) in LORAS.items()} | {"patterns": 7}
    assert {name: info.r for name, info in loras.items()} == largest
