"""Starts the measured systems, each in its own process, and says why one is left out."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks.adapters import empty_model, write_random_adapters
from benchmarks.rounds import Report
from benchmarks.speed.gguf_export import GgufType, export_gguf
from benchmarks.speed.plan import NUM_ADAPTERS, UNLOADED_LANES, Lane, SpeedConfig
from benchmarks.speed.worker import Worker, WorkerError
from remix_runtime.engines.embedded.config import Weights
from remix_runtime.engines.embedded.startup import kv_shape
from remix_runtime.errors import ConfigError
from remix_runtime.extras import missing_extra
from remix_runtime.kernels.attention import PAGE_TOKENS, page_bytes
from remix_runtime.kernels.panels import INT8_BYTES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SYSTEMS = "benchmarks.speed.systems."
_SLOT_TOKENS = 512
"""Context of one request in the peers: the longest workload fits."""


@dataclass(slots=True)
class Lineup:
    """The running systems."""

    bytes_per_token: dict[Weights, int]
    vocab_size: int
    workers: dict[Lane, Worker] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """What each system says of itself, and the CPU it used while others were measured."""
        return {
            str(lane): {**w.about, "idle_cpu_share": round(w.idle_cpu_share, 4)}
            for lane, w in self.workers.items()
        }


@dataclass(frozen=True, slots=True)
class Start:
    """How a system is started: its class in `systems`, its options, its process."""

    lane: Lane
    target: str
    options: dict[str, Any]
    process: dict[str, Any] = field(default_factory=dict)


@contextmanager
def lineup(config: SpeedConfig, report: Report) -> Iterator[Lineup]:
    """Everything that `config` names, running. Raises `ConfigError` if our own engine fails."""
    model = empty_model(config.base)
    found = Lineup(bytes_read_per_token(model), model.config.vocab_size)
    with tempfile.TemporaryDirectory(prefix="remix-bench-") as name, ExitStack() as stack:
        scratch = Path(name)

        def start(system: Start) -> None:
            report(f"starting {system.lane}")
            worker = Worker(
                str(system.lane),
                _SYSTEMS + system.target,
                system.options,
                log=scratch / f"{system.lane.name.lower()}.log",
                threads=config.threads,
                **system.process,
            )
            found.workers[system.lane] = stack.enter_context(closing(worker))

        try:
            kv_bytes = kv_bytes_per_token(model.config)
            for system in _own_systems(config, scratch, found.bytes_per_token, kv_bytes):
                start(system)
        except WorkerError as error:
            raise ConfigError(f"bench: {error}") from None
        # The same processes as without adapters: where a process's memory lies makes it faster or
        # slower by more than what adapters cost the base's traffic.
        found.workers[Lane.LOADED] = found.workers[Lane.MIXED] = found.workers[Lane.REMIX]
        found.workers[Lane.INT8_LOADED] = found.workers[Lane.INT8_MIXED] = found.workers[Lane.INT8]
        for peer in config.peers:
            try:
                for system in _peer(config, scratch, peer):
                    start(system)
            except WorkerError as error:
                found.left_out[peer] = str(error)
                report(f"{peer} is left out: {error}")
        yield found


def _own_systems(
    config: SpeedConfig, scratch: Path, bytes_per_token: Mapping[Weights, int], kv_bytes: int
) -> list[Start]:
    folders = write_random_adapters(
        scratch, config.base, config.shape, NUM_ADAPTERS, config.targets
    )
    found = []
    lanes: dict[Lane, Weights] = {
        Lane.REMIX: "stored",
        Lane.INT8: "int8",
        Lane.FLOAT32: "float32",
    }
    for lane, weights in lanes.items():
        engine = {
            "model": str(config.base),
            "device": "cpu",
            "dtype": "float32",
            "weights": weights,
            "threads": config.threads,
            "max_running": config.max_running,
            # Greedy answers to random tokens soon repeat themselves, as few real ones do.
            "proposals": False,
            # Lanes of one process ask for the same prompts.
            "prefix_cache": False,
        }
        adapters = [str(folder) for folder in folders] if lane in UNLOADED_LANES else []
        options = {"engine": engine, "adapters": adapters, "settles": True}
        found.append(Start(lane, "embedded:EmbeddedSystem", options))
    rooflines: dict[Lane, Weights] = {
        Lane.ROOFLINE: "stored",
        Lane.ROOFLINE_FLOAT32: "float32",
        Lane.ROOFLINE_INT8: "int8",
    }
    for lane, kind in rooflines.items():
        options = {
            "bytes_per_token": bytes_per_token[kind],
            "kv_bytes": kv_bytes,
            "threads": config.threads,
        }
        found.append(Start(lane, "roofline:RooflineSystem", options))
    return found


def _peer(config: SpeedConfig, scratch: Path, peer: str) -> Iterator[Start]:
    """Raises `WorkerError` for one that cannot run here."""
    generate = {"model": str(config.base), "threads": config.threads}
    if peer == "generate":
        yield Start(Lane.GENERATE, "generate:GenerateSystem", generate)
    elif peer == "peft":
        lora = {
            "lora_rank": config.shape.k * config.shape.r,
            "num_adapters": NUM_ADAPTERS,
            "target_modules": config.targets,
        }
        yield Start(Lane.PEFT, "generate:GenerateSystem", {**generate, **lora})
    elif peer == "vllm":
        python = config.vllm_python
        if python is None or shutil.which(str(python)) is None:
            raise WorkerError(
                f"no Python with vLLM at {python}; give --vllm-python or REMIX_BENCH_VLLM_PYTHON"
            )
        env = {"LD_PRELOAD": config.vllm_preload} if config.vllm_preload else {}
        # Compiled by default; no prefix is cached of prompts that never repeat.
        engine = {
            "dtype": "float32",
            "max_num_seqs": config.max_running,
            "max_model_len": _SLOT_TOKENS,
            "enforce_eager": config.vllm_eager,
        }
        vllm = {"model": str(config.base), "engine": engine}
        yield Start(Lane.VLLM, "vllm:VllmSystem", vllm, {"python": str(python), "env": env})
    else:
        assert peer == "llamacpp"
        yield from _llamacpp(config, scratch)


def _llamacpp(config: SpeedConfig, scratch: Path) -> Iterator[Start]:
    if importlib.util.find_spec("xllamacpp") is None:
        raise WorkerError(str(missing_extra("llama.cpp", "bench", "xllamacpp")))
    kinds: dict[Lane, GgufType] = {
        Lane.LLAMACPP: "F32",
        Lane.LLAMACPP_BF16: "BF16",
        Lane.LLAMACPP_Q8: "Q8_0",
    }
    for lane, kind in kinds.items():
        gguf = scratch / f"base-{kind}.gguf"
        try:
            export_gguf(config.base, gguf, kind)
        except ConfigError as error:
            raise WorkerError(str(error)) from None
        options: dict[str, Any] = {
            "gguf": str(gguf),
            "kind": kind,
            "threads": config.threads,
            "max_running": config.max_running,
            "max_model_len": _SLOT_TOKENS,
        }
        yield Start(lane, "llamacpp:LlamaCppSystem", options)


def kv_bytes_per_token(config: PretrainedConfig) -> int:
    """Of the keys and values of one token in all layers, in float32."""
    layers, heads, width = kv_shape(config)
    return page_bytes([heads] * layers, [width] * layers, torch.float32) // PAGE_TOKENS


def bytes_read_per_token(model: PreTrainedModel) -> dict[Weights, int]:
    """Bytes of all weights that one decoded token reads, by how they are held.

    Tied embeddings count once, as the output head; of untied input embeddings one row is read.
    """
    elements: int = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings()
    if head is not None and head.weight is not embedding.weight:
        elements -= embedding.weight.numel()
    linears = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    stored = model.config.get_text_config().dtype or torch.float32
    per_weight = {"stored": stored.itemsize, "float32": 4, "int8": INT8_BYTES}
    others = 4 * (elements - linears)
    return {kind: int(linears * size) + others for kind, size in per_weight.items()}  # type: ignore[misc]
