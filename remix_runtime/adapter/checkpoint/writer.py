"""Writing an adapter folder so that a crash leaves the old one, a whole new one, or none.

The folder is made beside its place under a hidden name, synced to disk with its configuration
last, read back through every check of `read_checkpoint`, and only then renamed. POSIX cannot swap
two folders in one step: while an existing checkpoint is replaced there is a moment between two
renames when the name is free and the old folder is beside it as `.<name>.old-<random>`.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch

from remix_runtime.adapter.checkpoint.config import emit_config, parse_config
from remix_runtime.adapter.checkpoint.defaults import DEFAULTS_FILE, emit_defaults
from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE
from remix_runtime.adapter.checkpoint.folder import open_folder
from remix_runtime.adapter.checkpoint.layouts import remix_tensors
from remix_runtime.adapter.checkpoint.parity_file import (
    PARITY_FILE,
    Parity,
    emit_parity,
    read_parity,
)
from remix_runtime.adapter.checkpoint.reader import TENSOR_FILE, read_checkpoint
from remix_runtime.adapter.checkpoint.training_file import (
    TRAINING_FILE,
    TrainingRecord,
    emit_training,
    parse_training,
)
from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS, AdapterConfig, LayerWeights
from remix_runtime.contracts import AdapterDefaults
from remix_runtime.errors import CheckpointError, CheckpointFormatError

README_FILE = "README.md"

_STATE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})
"""Of what a trainer saves beside its adapter to go on from: hours of work."""


def write_checkpoint(
    folder: Path,
    config: AdapterConfig,
    layers: Mapping[str, LayerWeights],
    *,
    readme: str,
    parity: Parity | None = None,
    defaults: AdapterDefaults | None = None,
    training: TrainingRecord | None = None,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Writes an adapter to `folder`, parents included, and returns its digest.

    An existing checkpoint there is replaced as a whole, with any file that was put beside it;
    anything else that is there, and one with a trainer's state in it, is left alone and refused.
    `dtype` is float32, bfloat16 or float16. Raises `CheckpointFormatError`, also for an adapter
    that `read_checkpoint` would refuse.
    """
    folder = Path(os.path.abspath(folder))
    _check_place(folder)
    tensors = {
        # The library refuses tensors that share memory: `copy` and a layout of their own.
        name: tensor.detach().to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in remix_tensors(layers).items()
    }
    contents = {README_FILE: readme.encode()}
    if parity is not None:
        contents[PARITY_FILE] = emit_parity(parity)
    if defaults is not None and defaults != AdapterDefaults():
        contents[DEFAULTS_FILE] = emit_defaults(defaults)
    if training is not None:
        contents[TRAINING_FILE] = emit_training(training)
    # The metadata is what PEFT writes, so that both write the same bytes.
    contents[TENSOR_FILE] = safetensors.torch.save(tensors, metadata={"format": "pt"})
    contents[CONFIG_FILE] = emit_config(config)

    folder.parent.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    temporary = folder.with_name(f".{folder.name}.tmp-{token}")
    old = folder.with_name(f".{folder.name}.old-{token}")
    temporary.mkdir()
    try:
        for name, data in contents.items():
            _write_synced(temporary / name, data)
        sync_folder(temporary)
        digest = read_checkpoint(temporary).digest
        if parity is not None:
            read_parity(temporary)
        _put(temporary, folder, old)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    if old.exists():
        shutil.rmtree(old)
    return digest


def put_training(folder: Path, record: TrainingRecord) -> None:
    """Writes `training.json` beside an adapter, in the place of one that is there; the digest stays
    as it is. A reader sees the old file or the new one. Raises `CheckpointError` for a folder that
    is no adapter and a record that does not fit it."""
    data = emit_training(record)
    parse_training(data, read_checkpoint(folder).mixtures)
    temporary = folder / f".{TRAINING_FILE}.tmp-{secrets.token_hex(8)}"
    try:
        _write_synced(temporary, data)
        temporary.replace(folder / TRAINING_FILE)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def tidy_place(folder: Path) -> None:
    """Clears away what a killed `write_checkpoint` left beside `folder`, and gives a checkpoint its
    name back that was being replaced. Nobody may write to `folder` meanwhile."""
    folder = Path(os.path.abspath(folder))
    hidden = f".{glob.escape(folder.name)}"
    for old in folder.parent.glob(f"{hidden}.old-*"):
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)
    for temporary in folder.parent.glob(f"{hidden}.tmp-*"):
        shutil.rmtree(temporary)


def _check_place(folder: Path) -> None:
    """Refuses a place that holds anything but an earlier checkpoint or an empty folder."""
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise CheckpointFormatError(
            f"{folder}: found a file or link, expected a free name or a checkpoint to replace"
        )
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        with open_folder(folder) as files:
            parse_config(files.read(CONFIG_FILE, max_bytes=DEFAULT_LIMITS.config_bytes))
        for path in folder.rglob("*"):
            if path.is_symlink() or path.suffix in _STATE_SUFFIXES:
                raise CheckpointFormatError(f"{path.relative_to(folder)} is there")
    except CheckpointError as error:
        raise CheckpointFormatError(
            f"{folder}: found a folder that is not a ReMix checkpoint ({error}), expected a free "
            "name; remove it or choose another"
        ) from None


def _put(temporary: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    folder.rename(old)
    try:
        temporary.rename(folder)
    except BaseException:
        old.rename(folder)
        raise


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Writes the folder's list of names to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
