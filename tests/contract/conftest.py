"""The engines under test, and what they serve."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import TrainingRecord, read_checkpoint, write_checkpoint
from remix_runtime.contracts import Engine, TrainedLoad
from remix_runtime.engines.config import FrontConfig
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from tests.loras import write_lora
from tests.models import MLP, random_checkpoint, save_tiny_base, tiny_model
from tests.ray_engines import ray_engine
from tests.vllm_engines import vllm_engine

MAX_WAITING = 4
HOST_ADAPTERS = 2
"""In memory at once; the tests load three."""
PROMPT = [5, 17, 99, 3, 42]


@dataclass
class Setup:
    engine: Engine
    adapters: list[Path]
    broken: Path
    is_exact: bool
    """Whether the engine counts what experts do in every step, and at once."""
    base: Path | None
    """None where nothing is read of a base and of adapters' files but their digest."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contract")
    save_tiny_base(root / "base", "llama-32")
    model = tiny_model("llama-32")
    for i in range(2):
        checkpoint = random_checkpoint(model, n=4, k=2, r=4, seed=i)
        load = TrainedLoad(tokens=8, modules=dict.fromkeys(checkpoint.layers, (7, 5, 3, 1)))
        write_checkpoint(
            root / f"a{i}",
            checkpoint.config,
            checkpoint.layers,
            readme="random",
            training=TrainingRecord(load=load) if i else None,
        )
    # Plain, and smaller than the others in memory: two of the three fit whichever they are.
    write_lora(root / "a2", "llama-32", {"r": 8, "lora_alpha": 48, "target_modules": list(MLP)})
    broken = root / "broken"
    broken.mkdir()
    return root


def adapter_bytes(folder: Path) -> int:
    """What the adapter in `folder` takes in the kernels' layout."""
    bank = AdapterBank({}, num_slots=1, device_bytes=1, host_bytes=1)
    return bank.prepare(read_checkpoint(folder)).num_bytes


# Ray and what it imports warn of their own.
RAY = (pytest.mark.system, pytest.mark.filterwarnings("ignore"))
ENGINES = [
    "fake",
    "embedded",
    pytest.param("vllm", marks=pytest.mark.vllm),
    pytest.param("ray of fake", marks=RAY),
    pytest.param("ray of embedded", marks=RAY),
]


async def ray_setup(request: pytest.FixtureRequest, folders: Path) -> Engine:
    """Two replicas with half of what another engine has."""
    request.getfixturevalue("ray_instance")
    if request.param == "ray of fake":
        # A request must last until it is aborted.
        inner: FrontConfig = FakeConfig(
            max_running=1, max_waiting=MAX_WAITING // 2, host_adapters=1, token_seconds=0.005
        )
    else:
        inner = EmbeddedConfig(
            model=str(folders / "base"),
            max_running=1,
            max_waiting=MAX_WAITING // 2,
            max_tokens_per_step=8,
            kv_cache_bytes=1 << 20,
            adapter_slots=1,
        )
    return await ray_engine(
        inner,
        engine_of=request.param.split()[-1],
        replicas=2,
        replica_cpus=0.5,
        replica_adapters=HOST_ADAPTERS // 2,
        ray_app=request.param.replace(" ", "-"),
    )


@pytest.fixture(params=ENGINES)
async def setup(request: pytest.FixtureRequest, folders: Path) -> AsyncIterator[Setup]:
    engine: Engine
    if request.param.startswith("ray"):
        engine = await ray_setup(request, folders)
    elif request.param == "fake":
        engine = FakeEngine(
            FakeConfig(max_running=2, max_waiting=MAX_WAITING, host_adapters=HOST_ADAPTERS)
        )
    elif request.param == "vllm":
        engine = vllm_engine(
            folders / "base",
            max_running=2,
            max_waiting=MAX_WAITING,
            adapter_slots=1,
            host_adapters=HOST_ADAPTERS,
        )
    else:
        engine = EmbeddedEngine(
            EmbeddedConfig(
                model=str(folders / "base"),
                max_running=2,
                max_waiting=MAX_WAITING,
                max_tokens_per_step=8,
                kv_cache_bytes=1 << 20,
                adapter_slots=2,
                host_adapter_bytes=HOST_ADAPTERS * adapter_bytes(folders / "a0"),
            )
        )
    if not request.param.startswith("ray"):
        assert not engine.health().ready
        await engine.start()
    adapters = [folders / f"a{i}" for i in range(3)]
    yield Setup(
        engine,
        adapters,
        folders / "broken",
        is_exact=request.param != "vllm",
        base=None if request.param.endswith("fake") else folders / "base",
    )
    await engine.stop()
