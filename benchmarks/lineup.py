"""Starts the measured systems, each in its own process, and says why one is left out."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.adapters import AdapterShape, write_random_adapter
from benchmarks.gguf_export import export_gguf
from benchmarks.plan import NUM_ADAPTERS, Lane
from benchmarks.worker import Worker, WorkerError
from remix_runtime.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEERS = ("generate", "peft", "vllm", "llamacpp")
_SLOT_TOKENS = 512
"""Context of one request in the peers: the longest workload fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineupConfig:
    base: Path
    scratch: Path
    """For adapters, the GGUF file and the logs of the systems."""
    threads: int
    max_running: int
    peers: tuple[str, ...]
    shape: AdapterShape
    targets: tuple[str, ...]
    vllm_python: Path | None
    vllm_eager: bool = False
    vllm_preload: str = ""
    """Libraries for LD_PRELOAD, separated by colons; vLLM asks for libiomp5 and tcmalloc."""


@dataclass(slots=True)
class Lineup:
    """The running systems. Close it."""

    workers: dict[Lane, Worker] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    bytes_per_token: int = 0
    vocab_size: int = 0
    _stack: ExitStack = field(default_factory=ExitStack)

    def about(self) -> dict[str, Any]:
        """What each system says of itself, and the CPU it used while others were measured."""
        return {
            str(lane): {**w.about, "idle_cpu_share": round(w.idle_cpu_share, 4)}
            for lane, w in self.workers.items()
        }

    def close(self) -> None:
        self._stack.close()


def start_lineup(config: LineupConfig, report: Callable[[str], None]) -> Lineup:
    """Starts everything that `config` names. Raises `ConfigError` if our own engine fails."""
    model = empty_model(config.base)
    lineup = Lineup(bytes_per_token=bytes_read_per_token(model), vocab_size=model.config.vocab_size)
    folders = []
    for i in range(NUM_ADAPTERS):
        folders.append(str(config.scratch / f"adapter-{i}"))
        write_random_adapter(Path(folders[-1]), model, config.shape, config.targets, seed=i)
    engine = {
        "model": str(config.base),
        "device": "cpu",
        "dtype": "float32",
        "threads": config.threads,
        "max_running": config.max_running,
    }
    embedded = "benchmarks.systems.embedded:EmbeddedSystem"
    remix: list[tuple[Lane, str, Mapping[str, Any]]] = [
        (Lane.REMIX, embedded, {"engine": engine}),
        (Lane.LOADED, embedded, {"engine": engine, "adapters": folders}),
        (
            Lane.ROOFLINE,
            "benchmarks.systems.roofline:RooflineSystem",
            {"bytes_per_token": lineup.bytes_per_token, "threads": config.threads},
        ),
    ]
    try:
        for lane, target, options in remix:
            _start(lineup, config, lane, target, options, report)
        # The same process as the adapters' base-only traffic: only the requests differ.
        lineup.workers[Lane.MIXED] = lineup.workers[Lane.LOADED]
        for peer in config.peers:
            _start_peer(lineup, config, peer, report)
    except WorkerError as error:
        lineup.close()
        raise ConfigError(f"bench: {error}") from None
    except BaseException:
        lineup.close()
        raise
    return lineup


def _start(
    lineup: Lineup,
    config: LineupConfig,
    lane: Lane,
    target: str,
    options: Mapping[str, Any],
    report: Callable[[str], None],
    **process: Any,
) -> None:
    report(f"starting {lane}")
    log = config.scratch / f"{target.partition(':')[0].rpartition('.')[2]}-{lane.name.lower()}.log"
    worker = Worker(str(lane), target, options, log=log, threads=config.threads, **process)
    lineup._stack.callback(worker.close)
    lineup.workers[lane] = worker


def _start_peer(
    lineup: Lineup, config: LineupConfig, peer: str, report: Callable[[str], None]
) -> None:
    """A peer that cannot run is written into `left_out`."""
    common = {"model": str(config.base), "threads": config.threads}
    generate = "benchmarks.systems.generate:GenerateSystem"
    try:
        if peer == "generate":
            _start(lineup, config, Lane.GENERATE, generate, common, report)
        elif peer == "peft":
            lora = {
                **common,
                "lora_rank": config.shape.k * config.shape.r,
                "num_adapters": NUM_ADAPTERS,
                "target_modules": config.targets,
            }
            _start(lineup, config, Lane.PEFT, generate, lora, report)
        elif peer == "vllm":
            _start_vllm(lineup, config, report)
        elif peer == "llamacpp":
            _start_llamacpp(lineup, config, report)
        else:
            raise ConfigError(f"peers: found {peer!r}, expected some of {', '.join(PEERS)}")
    except WorkerError as error:
        lineup.left_out[peer] = str(error)
        report(f"{peer} is left out: {error}")


def _start_vllm(lineup: Lineup, config: LineupConfig, report: Callable[[str], None]) -> None:
    python = config.vllm_python
    if python is None or shutil.which(str(python)) is None:
        raise WorkerError(
            f"no Python with vLLM at {python}; give --vllm-python or REMIX_BENCH_VLLM_PYTHON"
        )
    options = {
        "model": str(config.base),
        "max_running": config.max_running,
        "max_model_len": _SLOT_TOKENS,
        "eager": config.vllm_eager,
    }
    env = {"LD_PRELOAD": config.vllm_preload} if config.vllm_preload else {}
    target = "benchmarks.systems.vllm_cpu:VllmSystem"
    _start(lineup, config, Lane.VLLM, target, options, report, python=str(python), env=env)


def _start_llamacpp(lineup: Lineup, config: LineupConfig, report: Callable[[str], None]) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise WorkerError("xllamacpp is not installed; `pip install xllamacpp`")
    gguf = config.scratch / "base-f32.gguf"
    try:
        export_gguf(config.base, gguf)
    except ConfigError as error:
        raise WorkerError(str(error)) from None
    options = {
        "gguf": str(gguf),
        "threads": config.threads,
        "max_running": config.max_running,
        "max_model_len": _SLOT_TOKENS,
    }
    target = "benchmarks.systems.llamacpp:LlamaCppSystem"
    _start(lineup, config, Lane.LLAMACPP, target, options, report)


def empty_model(base: Path) -> PreTrainedModel:
    """The base without its weights: shapes only. Raises `ConfigError`."""
    from transformers import AutoConfig

    from remix_runtime.base_model import without_weights

    if not (base / "config.json").is_file():
        raise ConfigError(f"base: found no config.json in {base}, expected a model folder")
    return without_weights(AutoConfig.from_pretrained(base))


def bytes_read_per_token(model: PreTrainedModel) -> int:
    """Float32 bytes of all weights that one decoded token reads.

    Tied embeddings count once, as the output head; of untied input embeddings one row is read.
    """
    elements: int = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        elements -= embedding.weight.numel()
    return 4 * elements
