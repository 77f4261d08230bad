"""What the server may take of memory: summed from the settings before anything is loaded, and
compared with what there is.

A setting that the user gave no number for becomes smaller where the sum would be too large. What
is too large in spite of that is refused, in one line with all parts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from remix_runtime.adapter.examination import FORKSERVER_BYTES, ExaminationLimits
from remix_runtime.base.config import read_config
from remix_runtime.base.folder import find_base
from remix_runtime.base.weights import num_parameters, weight_bytes
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import cpu
from remix_runtime.kernels.panels import INT8_BYTES
from server.engines import CONFIGS, EngineName
from server.http.connection import ConnectionLimits
from server.live.remembered import MAX_BYTES as REMEMBERED_BYTES
from server.settings import ServerSettings
from server.store import DOWNLOADING_BYTES

_MIB = 1 << 20
PROCESS_BYTES = 640 * _MIB
"""Python, PyTorch and the other libraries; measured, and rounded up."""
RAY_BYTES = 1536 * _MIB
"""Ray's own processes, and its store for adapters on their way."""
CONNECTION_BYTES = ConnectionLimits(connections=1).head_bytes + (16 << 10)
REQUEST_BYTES = 256 << 10
"""Token ids, events and texts of a request that waits or runs, without its body."""
OBJECTS_PER_BODY = 32
"""Python's objects take so many times the JSON that they are made from, one body at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the sum."""

    name: str
    value: int
    """Of a setting; for others the bytes."""
    factor: float = 1.0
    """Bytes for each of the value."""
    least: int | None = None
    """The least that the value may become; None where the user gave it, or nobody can."""

    @property
    def num_bytes(self) -> int:
        return int(self.value * self.factor)

    @property
    def least_bytes(self) -> int:
        return self.num_bytes if self.least is None else int(self.least * self.factor)

    def __str__(self) -> str:
        return f"{self.name} {-(-self.num_bytes // _MIB)}"


def memory_limit(root: Path = Path("/")) -> tuple[int, str]:
    """Bytes that this process may take, and who says so: the strictest of its control groups, or
    the machine."""
    found = (os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's memory")
    for file in _limit_files(root):
        try:
            text = file.read_text().strip()
        except OSError:
            continue
        if text.isdecimal() and int(text) < found[0]:
            found = (int(text), f"the limit in {file}")
    return found


def _limit_files(root: Path) -> list[Path]:
    """Of the control group's first and second version, its ancestors' too. In a container the path
    may be that of the host: then the group is at the top."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = top / path.lstrip("/")
        files += [folder / name for folder in (group, *group.parents) if folder.is_relative_to(top)]
    return files


def parts_of(
    engine: EngineName, base: str | None, given: Mapping[str, Any], settings: ServerSettings
) -> list[Part]:
    """All parts of the sum, of which vLLM counts its own itself. `given`: the engine's options,
    None where the user gave none."""
    options = {name: value for name, value in given.items() if value is not None}
    computing, copies, here = engine, 1, 1
    if engine == "ray":
        computing = options.get("engine_of", "embedded")
        copies = options.get("max_replicas", options.get("replicas", 1))
        here = 0 if "ray_address" in options else copies
    known = CONFIGS[computing].__dataclass_fields__
    waiting = sum(options.get(name, known[name].default) for name in ("max_running", "max_waiting"))
    parts = server_parts(settings, num_requests=waiting * copies)
    if engine == "ray" and here:
        parts += [
            Part(name="Ray", value=RAY_BYTES),
            Part(name="the replicas' processes", value=PROCESS_BYTES, factor=here),
        ]
    if computing == "embedded" and base is not None and here:
        on_device = options.get("device", "auto") != "cpu" and torch.cuda.is_available()
        inner = embedded_parts(
            options,
            weight_bytes=0 if on_device else _weight_bytes(base, options),
            on_device=on_device,
        )
        parts += [replace(part, factor=here * part.factor) for part in inner]
    return parts


def _weight_bytes(base: str, given: Mapping[str, Any]) -> int:
    """Of the base on the CPU."""
    try:
        folder = find_base(base)
        if given.get("dtype", "auto") not in ("auto", "float32"):
            return 2 * num_parameters(folder)
        found = weight_bytes(folder, read_config(folder), int8_bytes=INT8_BYTES)
    except ConfigError:  # the engine says more of what is wrong with a base
        return 0
    weights = given.get("weights", "stored") if cpu.available() else "float32"
    return int(getattr(found, weights))


def server_parts(settings: ServerSettings, *, num_requests: int) -> list[Part]:
    """What every server takes, whatever the engine."""
    given = settings.model_fields_set
    ports = 1 if settings.data_dir is None else 2
    parts = [
        Part(name="the process", value=PROCESS_BYTES),
        Part(
            name="--max-connections",
            value=settings.max_connections,
            factor=ports * CONNECTION_BYTES,
            least=None if "max_connections" in given else 1000,
        ),
        Part(name="--bodies-bytes", value=settings.room_for_bodies),
        Part(name="--max-body-bytes", value=settings.max_body_bytes, factor=OBJECTS_PER_BODY),
        Part(
            name="--max-running and --max-waiting",
            value=num_requests,
            factor=REQUEST_BYTES,
        ),
        Part(name="remembered responses", value=REMEMBERED_BYTES),
    ]
    if settings.data_dir is not None:
        slack = ExaminationLimits(tensor_bytes=0).memory_bytes
        parts += [
            Part(name="imports", value=FORKSERVER_BYTES + slack + DOWNLOADING_BYTES),
            Part(
                name="--max-import-bytes",
                value=settings.max_import_bytes,
                factor=1.5,
                least=None if "max_import_bytes" in given else 64 * _MIB,
            ),
        ]
    return parts


def embedded_parts(given: Mapping[str, Any], *, weight_bytes: int, on_device: bool) -> list[Part]:
    """What the embedded engine takes of this machine's memory. `given`: the options that the user
    gave."""

    def part(name: str, least: int) -> Part:
        default = EmbeddedConfig.__dataclass_fields__[name].default
        return Part(
            name=f"--{name.replace('_', '-')}",
            value=given.get(name, default),
            least=None if name in given else least,
        )

    host = part("host_adapter_bytes", 128 * _MIB)
    if on_device:
        return [host]
    return [
        Part(name="the base's weights", value=weight_bytes),
        part("kv_cache_bytes", 256 * _MIB),
        part("adapter_bytes", 64 * _MIB),
        host,
    ]


def fit(parts: Sequence[Part], limit: int, source: str) -> list[Part]:
    """The parts, made smaller by one measure where the user said nothing, so that their sum is at
    most the limit. Raises `ConfigError`."""
    if sum(part.num_bytes for part in parts) <= limit:
        return list(parts)
    total = sum(part.least_bytes for part in parts)
    if total > limit:
        least = [part if part.least is None else replace(part, value=part.least) for part in parts]
        raise ConfigError(
            f"memory: found {-(-total // _MIB)} MiB ({', '.join(map(str, least))}), expected at "
            f"most {limit // _MIB}, {source}; give smaller numbers, or REMIX_MEMORY_BYTES if there "
            "is more"
        )
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        fits = sum(part.num_bytes for part in _scaled(parts, middle)) <= limit
        low, high = (middle, high) if fits else (low, middle)
    return _scaled(parts, low)


def _scaled(parts: Sequence[Part], share: float) -> list[Part]:
    return [
        part
        if part.least is None
        else replace(part, value=max(min(part.least, part.value), _round(part.value * share)))
        for part in parts
    ]


def _round(value: float) -> int:
    """To whole MiB, where it is bytes."""
    return int(value) if value < _MIB else int(value) // _MIB * _MIB


def changed(before: Sequence[Part], after: Sequence[Part]) -> dict[str, int]:
    """The settings that became smaller, by their names."""
    return {
        new.name.removeprefix("--").replace("-", "_"): new.value
        for old, new in zip(before, after, strict=True)
        if new.value != old.value
    }
