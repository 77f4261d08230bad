"""What the embedded engine counts of experts: every token of requests, and nothing else."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from remix_runtime.adapter.layers import attach_checkpoint
from remix_runtime.adapter.parity import record_parity
from remix_runtime.contracts import AdapterInfo
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.kernels import make_table
from tests.engines import complete, complete_all, request
from tests.models import (
    ATTENTION,
    MLP,
    VOCAB_SIZE,
    random_checkpoint,
    save_tiny_base,
    tiny_model,
)
from tests.unit.engines.test_bits import job_of

Load = Mapping[str, tuple[int, ...]]

SHAPES = ((8, 4, 8, MLP), (3, 1, 5, (*MLP, *ATTENTION)), (1, 1, 4, ("down_proj", "q_proj")))


def tokens(count: int) -> list[int]:
    return random.choices(range(VOCAB_SIZE), k=count)


# -- against the routes -------------------------------------------------------------------------


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def steps_of(jobs: list[Job]) -> Iterator[list[Chunk]]:
    """The prompts in random chunks, decodes of one token among them, until all are computed."""
    done = dict.fromkeys(jobs, 0)
    while done:
        chunks = []
        for job, start in list(done.items()):
            count = random.choice([1, random.randint(1, len(job.tokens) - start)])
            chunks.append(Chunk(job, start, count))
            done[job] += count
            if done[job] == len(job.tokens):
                del done[job]
        yield sorted(chunks, key=lambda chunk: chunk.job.slot)


def counted(
    routes: Mapping[str, Tensor], chunks: list[Chunk], sums: dict[str, dict[str, list[int]]]
) -> None:
    """Adds the routes of a step to the sums, by digest and module."""
    first = 0
    for chunk in chunks:
        rows = slice(first, first + chunk.count)
        first += chunk.count
        if chunk.job.request.digest is None:
            continue
        for name, routes_Tk in routes.items():
            for expert in routes_Tk[rows].flatten().tolist():
                if expert >= 0:
                    sums[chunk.job.request.digest][name][expert] += 1


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", "float32"),
        ("qwen3", "float32"),  # both in one native call for all blocks
        ("gemma3", "float32"),  # module by module
        ("llama", "bfloat16"),  # PyTorch's kernels
    ],
)
def test_counts_are_those_of_the_routes(
    tmp_path: Path, family: str, dtype: str, threads: int
) -> None:
    base = save_tiny_base(tmp_path / "base", family)
    core = build_core(
        EmbeddedConfig(
            model=str(base), dtype=dtype, kv_cache_bytes=1 << 22, adapter_slots=4, threads=threads
        )
    )
    model, sums = tiny_model(family), {}
    digests: list[str | None] = [None]
    for i, (n, k, r, targets) in enumerate(SHAPES):
        checkpoint = random_checkpoint(model, n=n, k=k, r=r, target_modules=targets, seed=i)
        core.bank.add(core.bank.prepare(checkpoint))
        digests.append(checkpoint.digest)
        sums[checkpoint.digest] = {name: [0] * n for name in checkpoint.layers}
    selected = 0
    for _ in range(3):
        jobs = [
            job_of(core, tokens(random.randint(1, 40)), random.choice(digests)) for _ in "x" * 7
        ]
        for chunks in steps_of(jobs):
            core.runner.run(chunks)
            routes: dict[str, Tensor] = {}
            core.runner.run(chunks, routes)  # again, and not counted
            counted(routes, chunks, sums)
        for job in jobs:
            core.scheduler.pool.give_back(job.pages)
            if job.request.digest is not None:
                core.bank.unpin_slot(job.request.digest)
    differing = 0
    for digest, modules in sums.items():
        load = core.bank.expert_load(digest)
        assert load.keys() == modules.keys()
        for name, counts in modules.items():
            assert sum(load[name]) == sum(counts)
            selected += sum(counts)
            differing += sum(abs(a - b) for a, b in zip(load[name], counts, strict=True))
    assert selected > 1000
    # The one call for all blocks rounds in another way than the modules whose routes are recorded.
    assert differing <= (selected / 500 if family in ("llama", "qwen3") else 0)


# -- from load to unload ------------------------------------------------------------------------


def write(folder: Path, seed: int, *, parity: bool = False) -> Path:
    model = tiny_model("llama")
    checkpoint: Checkpoint = random_checkpoint(model, n=4, k=2, r=4, seed=seed)
    recorded = None
    if parity:
        recorded = record_parity(model, attach_checkpoint(model, checkpoint), [[1, 2, 3], [4, 5]])
    write_checkpoint(folder, checkpoint.config, checkpoint.layers, readme="x", parity=recorded)
    return folder


async def started(tmp_path: Path, folder: Path) -> EmbeddedEngine:
    """One slot, and host memory for one of two adapters of the size of that in `folder`."""
    bank = AdapterBank({}, num_slots=1, device_bytes=1, host_bytes=1)
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(save_tiny_base(tmp_path / "base")),
            kv_cache_bytes=1 << 20,
            adapter_slots=1,
            max_running=4,
            max_tokens_per_step=4,
            proposals=False,  # those that are refused would count too
            host_adapter_bytes=bank.prepare(read_checkpoint(folder)).num_bytes,
        )
    )
    await engine.start()
    return engine


def check(load: Load, info: AdapterInfo, computed: int) -> None:
    assert len(load) == info.num_layers
    for counts in load.values():
        assert len(counts) == info.num_experts
        assert sum(counts) == info.top_k * computed


async def test_counts_stay_with_their_adapter_wherever_it_is(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed) for seed in range(2)]
    engine = await started(tmp_path, folders[0])
    infos = [await engine.load_adapter(folder) for folder in folders]
    computed = [0, 0]
    for i in (0, 1, 1, 0, 1, 0):
        length = random.randint(1, 9)
        done = await complete(engine, request(tokens(length), infos[i].digest, ignore_eos=True))
        await complete(engine, request(tokens(length)))  # the base's tokens are nobody's
        # The last token that is drawn is never computed.
        computed[i] += length + len(done.token_ids) - 1
        for info, total in zip(infos, computed, strict=True):
            check(engine.expert_load(info.digest), info, total)
    assert engine.stats().adapter_reads > 4
    await engine.unload_adapter(infos[0].digest)
    assert engine.expert_load(infos[0].digest) == {}
    check(engine.expert_load(infos[1].digest), infos[1], computed[1])
    check(engine.expert_load((await engine.load_adapter(folders[0])).digest), infos[0], 0)
    await engine.stop()
    assert engine.expert_load(infos[1].digest) == {}


async def test_a_replay_of_parity_files_does_not_count(tmp_path: Path) -> None:
    folders = [write(tmp_path / str(seed), seed, parity=True) for seed in range(2)]
    engine = await started(tmp_path, folders[0])
    first = await engine.load_adapter(folders[0])
    check(engine.expert_load(first.digest), first, 0)
    await complete(engine, request(tokens(5), first.digest, max_tokens=1))
    second = await engine.load_adapter(folders[1])
    check(engine.expert_load(first.digest), first, 5)
    check(engine.expert_load(second.digest), second, 0)
    await engine.stop()


async def test_counts_are_read_at_any_moment_and_only_grow(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 0)
    engine = await started(tmp_path, folder)
    info = await engine.load_adapter(folder)
    stop, seen = asyncio.Event(), 0

    def watch() -> None:
        nonlocal seen
        before: Load = engine.expert_load(info.digest)
        while not stop.is_set():
            now = engine.expert_load(info.digest)
            for name, counts in now.items():
                assert all(a <= b for a, b in zip(before[name], counts, strict=True))
            seen += now != before
            before = now

    watching = asyncio.create_task(asyncio.to_thread(watch))
    length = 200  # long enough for the other thread to get its turns
    items = [request(tokens(8), info.digest, max_tokens=length, ignore_eos=True) for _ in range(4)]
    await complete_all(engine, items)
    stop.set()
    await watching
    assert seen > 1
    check(engine.expert_load(info.digest), info, 4 * (8 + length - 1))
    await engine.stop()


def test_a_device_whose_kernels_do_not_count_has_no_counts() -> None:
    checkpoint = random_checkpoint(tiny_model("llama"))
    tables = {
        name: make_table(1, layer.a_nrD.shape[2], layer.b_nOr.shape[1])
        for name, layer in checkpoint.layers.items()
    }
    for device in ("cuda", "cpu"):
        bank = AdapterBank(
            tables, num_slots=1, device=device, device_bytes=1 << 20, host_bytes=1 << 20
        )
        bank.add(bank.prepare(checkpoint))
        assert bank.expert_load(checkpoint.digest).keys() == (
            tables.keys() if device == "cpu" else set()
        )
        assert bank.expert_load("unknown") == {}
