"""Plain LoRAs on the vLLM engine: read by our reader, and served by the layers of the mixtures."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from remix_runtime.errors import CapacityError, CheckpointFormatError
from tests.engines import complete_all, request
from tests.loras import LORAS, with_lora, write_lora
from tests.models import tiny_model
from tests.reference import greedy
from tests.vllm.conftest import FAMILY, World
from tests.vllm_engines import vllm_engine

pytestmark = pytest.mark.vllm

PROMPTS = ([5, 17, 99, 3, 42], [7], list(range(100, 120)))
NEW_TOKENS = 12


async def test_same_tokens_as_peft_beside_mixtures_and_the_base(
    world: World, tmp_path: Path
) -> None:
    folders, models = [], [tiny_model(FAMILY)]
    for seed, (name, (settings, dtype)) in enumerate(LORAS.items()):
        folders.append(write_lora(tmp_path / name, FAMILY, settings, dtype, seed=seed))
        models.append(with_lora(FAMILY, folders[-1]))
    for adapter in world.remix:
        folders.append(adapter.folder)
        models.append(adapter.model)
    engine = vllm_engine(world.base, max_running=32, adapter_slots=len(folders))
    await engine.start()
    try:
        infos = [await engine.load_adapter(folder) for folder in folders]
        shapes = [(info.num_experts, info.top_k) for info in infos]
        assert shapes == [(1, 1)] * len(LORAS) + [(8, 4), (4, 1), (5, 2)]
        jobs = [
            (request(prompt, digest, max_tokens=NEW_TOKENS, ignore_eos=True), i)
            for i, digest in enumerate([None, *(info.digest for info in infos)])
            for prompt in PROMPTS
        ]
        random.Random(0).shuffle(jobs)
        expected = [greedy(models[i], list(item.prompt_token_ids), NEW_TOKENS) for item, i in jobs]
        crowd = await complete_all(engine, [item for item, _ in jobs])
        assert [done.token_ids for done in crowd] == expected
        await check_refusals(engine, folders[0], tmp_path)
    finally:
        await engine.stop()


async def check_refusals(engine, good: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    dora = tmp_path / "dora"
    shutil.copytree(good, dora)
    config = json.loads((good / "adapter_config.json").read_text())
    (dora / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(CheckpointFormatError, match="use_dora: found True"):
        await engine.load_adapter(dora)
    large = {"r": 65, "target_modules": ["q_proj"]}
    with pytest.raises(CapacityError, match="max_lora_rank"):
        await engine.load_adapter(write_lora(tmp_path / "large", FAMILY, large))
