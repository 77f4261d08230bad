"""`training.json`, which `remix train` writes into an adapter: how its experts were used on the
training data, and how the losses went. Servers compare the traffic with it.

    {"format_version": 1,
     "expert_load": {"tokens": T, "modules": {MODULE: [n counts]}},
     "curves": {"step": [...], "loss": [...], ..., "held_out_loss": [[step, value], ...]}}

`expert_load` counts how often T tokens of training rows activated each expert of each adapted
linear, by the deterministic top-k: a module's counts add up to k · T. It and the curves may be left
out. The file is no part of the adapter's identity.
"""

from __future__ import annotations

import json
import re
import sys
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from remix_runtime.adapter.checkpoint.folder import Folder, open_folder
from remix_runtime.adapter.checkpoint.strict_json import parse_object, show
from remix_runtime.adapter.checkpoint.types import Mixture
from remix_runtime.contracts import TrainedLoad
from remix_runtime.errors import CheckpointFormatError

TRAINING_FILE = "training.json"
MAX_BYTES = 8 << 20
MAX_POINTS = 500
"""Of a curve."""
HELD_OUT = "held_out_loss"

_VERSION = 1
_MAX_CURVES = 32
_MAX_COUNT = 1 << 53
_MAX_VALUE = 1e300
_CURVE = re.compile(r"[a-z][a-z0-9_]{0,63}")

Curves = dict[str, list[int] | list[float] | list[tuple[int, float]]]
"""`step` and values at those steps by name; `held_out_loss` has steps of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """The content of `training.json`."""

    load: TrainedLoad | None = None
    curves: Curves = field(default_factory=dict)


def training_in(files: Folder, mixtures: Mapping[str, Mixture]) -> TrainingRecord | None:
    """The record in an open adapter folder whose adapted linears are `mixtures`; None where there
    is no such file. Raises `CheckpointFormatError` that names the field."""
    if not files.has(TRAINING_FILE):
        return None
    return parse_training(files.read(TRAINING_FILE, max_bytes=MAX_BYTES), mixtures)


def read_curves(folder: Path) -> Curves:
    """The curves of an adapter folder; empty where it has none. Raises
    `CheckpointFormatError`."""
    with open_folder(folder) as files:
        if not files.has(TRAINING_FILE):
            return {}
        return _curves(_fields(files.read(TRAINING_FILE, max_bytes=MAX_BYTES)).get("curves", {}))


def parse_training(data: bytes, mixtures: Mapping[str, Mixture]) -> TrainingRecord:
    """The content of the file. Raises `CheckpointFormatError`."""
    given = _fields(data)
    load = _load(given["expert_load"], mixtures) if "expert_load" in given else None
    return TrainingRecord(load=load, curves=_curves(given.get("curves", {})))


def emit_training(record: TrainingRecord) -> bytes:
    """The file's content."""
    content: dict[str, object] = {"format_version": _VERSION}
    if record.load is not None:
        modules = {name: list(counts) for name, counts in record.load.modules.items()}
        content["expert_load"] = {"tokens": record.load.tokens, "modules": modules}
    content["curves"] = {name: list(values) for name, values in record.curves.items()}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _fields(data: bytes) -> dict[str, object]:
    given = parse_object(data, file=TRAINING_FILE)
    _only(given, "", ("format_version", "expert_load", "curves"))
    version = given.get("format_version")
    if type(version) is not int or version != _VERSION:
        raise _wrong("format_version", version, str(_VERSION))
    return given


def _load(value: object, mixtures: Mapping[str, Mixture]) -> TrainedLoad:
    load = _object(value, "expert_load")
    _only(load, "expert_load.", ("tokens", "modules"))
    tokens = load.get("tokens")
    if type(tokens) is not int or not 0 < tokens < _MAX_COUNT:
        raise _wrong("expert_load.tokens", tokens, "a positive integer")
    modules = _object(load.get("modules"), "expert_load.modules")
    for name in sorted(modules.keys() ^ mixtures.keys()):
        what = "is missing" if name in mixtures else "is none of the adapter's"
        raise CheckpointFormatError(f"{TRAINING_FILE}: expert_load.modules: {show(name)} {what}")
    counts = {
        # Every adapter of a base has the same names.
        sys.intern(name): array("q", _counts(name, modules[name], tokens, mixture))
        for name, mixture in mixtures.items()
    }
    return TrainedLoad(tokens=tokens, modules=counts)


def _counts(module: str, value: object, tokens: int, mixture: Mixture) -> list[int]:
    where, n = f"expert_load.modules.{module}", mixture.num_experts
    if not isinstance(value, list) or len(value) != n:
        raise _wrong(where, value, f"a list of {n} counts, one for each expert")
    for count in value:
        if type(count) is not int or not 0 <= count <= tokens:
            raise _wrong(where, count, f"counts from 0 to {tokens}, the number of tokens")
    if sum(value) != mixture.top_k * tokens:
        expected = f"{mixture.top_k * tokens}: {mixture.top_k} experts for each of {tokens} tokens"
        raise _wrong(f"{where}: sum", sum(value), expected)
    return value


def _curves(value: object) -> Curves:
    given = _object(value, "curves")
    if len(given) > _MAX_CURVES:
        raise _wrong("curves", f"{len(given)} curves", f"at most {_MAX_CURVES}")
    steps = _steps(_list(given.get("step", []), "curves.step"), "curves.step")
    curves: Curves = {}
    for name, values in given.items():
        if not _CURVE.fullmatch(name):
            raise _wrong("curves", name, "names of lower-case letters, digits and underscores")
        where = f"curves.{name}"
        found = _list(values, where)
        if name == HELD_OUT:
            curves[name] = _pairs(found, where)
            continue
        if len(found) != len(steps):
            raise _wrong(where, f"{len(found)} values", f"{len(steps)}, as many as curves.step")
        curves[name] = steps if name == "step" else [_number(v, where) for v in found]
    return curves


def _pairs(values: list[object], where: str) -> list[tuple[int, float]]:
    steps: list[object] = []
    numbers: list[float] = []
    for pair in values:
        if not isinstance(pair, list) or len(pair) != 2:
            raise _wrong(where, pair, "pairs of a step and a value")
        steps.append(pair[0])
        numbers.append(_number(pair[1], where))
    return list(zip(_steps(steps, where), numbers, strict=True))


def _steps(values: list[object], where: str) -> list[int]:
    steps: list[int] = []
    for step in values:
        last = steps[-1] if steps else -1
        if type(step) is not int or not last < step < _MAX_COUNT:
            raise _wrong(where, step, "steps in ascending order, from 0")
        steps.append(step)
    return steps


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or len(value) > MAX_POINTS:
        raise _wrong(where, value, f"a list of at most {MAX_POINTS} points")
    return value


def _number(value: object, where: str) -> float:
    # Compared before float(): Python compares integers of any size, but converts only some.
    if type(value) not in (int, float) or not -_MAX_VALUE <= value <= _MAX_VALUE:  # type: ignore[operator]
        raise _wrong(where, value, "finite numbers")
    return float(value)  # type: ignore[arg-type]


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "a JSON object")
    return value


def _only(given: Mapping[str, object], prefix: str, names: tuple[str, ...]) -> None:
    for name in given:
        if name not in names:
            raise CheckpointFormatError(
                f"{TRAINING_FILE}: found field {show(prefix + name)}, expected only "
                f"{', '.join(names)}"
            )


def _wrong(where: str, found: object, expected: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{TRAINING_FILE}: {where}: found {show(found)}, expected {expected}"
    )
