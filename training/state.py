"""The state of a run on disk: one safetensors file per save, no pickle.

A file holds trainable weights, both AdamW moments, the sizes of the layers' inputs and what is
known of the lowest held-out loss; its header holds the step, the settings and the digests of base
and data. Random draws and data order are functions of seed and step (`seeds.py`), so nothing else
is needed to go on exactly. A file is complete or absent: written under another name, synced, then
renamed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from remix_runtime.errors import TrainingError

MOMENTS = ("exp_avg", "exp_avg_sq")
_MORE = "more/"
FORMAT = "2"
"""Of the header: 1 had no digest of the base."""
KEPT = 2
"""The number of states that are kept; a newer one never replaces an older one in place."""
UNFINISHED = ".unfinished"
"""Ends the name of a file that is being written."""

_BEFORE_A_CHOICE = {
    "base_dtype": "float32",
    "base_quantization": "none",
    "cache_trunk": "False",
    "columns": "{}",
    "packing": "False",
    "processes": "1",
}
"""What a state goes on with that was written before there were these settings."""

_DIGEST = re.compile("[0-9a-f]{64}")

Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What a state has beside weights and moments."""

    step: int
    run: Mapping[str, str]
    more: Mapping[str, Tensor]


def state_files(folder: Path) -> list[Path]:
    """Saved states, oldest first."""
    return sorted(folder.glob("state-*.safetensors"))


def drop_states(folder: Path, *, after: int) -> None:
    """Deletes the states of later steps."""
    for path in state_files(folder):
        if int(path.stem.rpartition("-")[2]) > after:
            path.unlink()


def save_state(
    folder: Path,
    *,
    step: int,
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
    more: Mapping[str, Tensor],
    run: Mapping[str, str],
) -> Path:
    """Writes the state after `step` steps and removes all but the newest `KEPT` files.

    `run` is what a resuming run must have in common, see `load_state`; `more` is what it gets.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().contiguous()
        for moment in MOMENTS:
            # A parameter that never had a gradient has no moments yet: zeros are the same.
            value = optimizer.state[parameter].get(moment, torch.zeros_like(parameter))
            tensors[f"{moment}/{name}"] = value.cpu().contiguous()
    tensors |= {_MORE + name: tensor.detach().cpu() for name, tensor in more.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"state-{step:07d}.safetensors"
    unfinished = path.with_suffix(UNFINISHED)
    header = {"format": FORMAT, "step": str(step), "run": json.dumps(dict(run))}
    try:
        save_file(tensors, unfinished, metadata=header)
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (OSError, SafetensorError) as error:
        unfinished.unlink(missing_ok=True)
        raise TrainingError(f"{path}: the state cannot be written: {error}") from None
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    for old in state_files(folder)[:-KEPT]:
        old.unlink()
    return path


def load_state(
    folder: Path,
    *,
    parameters: Parameters,
    optimizer: torch.optim.Optimizer,
    run: Mapping[str, str],
) -> Saved:
    """Puts the newest saved state into parameters and optimizer. Returns what else is in it, of
    step 0 if there is none.

    Raises `TrainingError` when the file is broken or a value of `run` differs from its own.
    """
    files = state_files(folder)
    if not files:
        return Saved(step=0, run={}, more={})
    path = files[-1]
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            header = file.metadata() or {}
            if header.get("format") != FORMAT and "run" in header:
                raise TrainingError(
                    f"{path}: found a state of another version, which says nothing of the base's "
                    "content; start again with --overwrite, or go on with the version that wrote it"
                )
            saved = {**_BEFORE_A_CHOICE, **json.loads(header["run"])}
            _check_same_run(path, saved, run)
            step = int(header["step"])
            more = {
                name.removeprefix(_MORE): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - the file is no mapping
                if name.startswith(_MORE)
            }
            for name, parameter in parameters.items():
                parameter.copy_(file.get_tensor(f"weight/{name}"))
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(step), device=parameter.device),
                    **{
                        moment: file.get_tensor(f"{moment}/{name}").to(parameter.device)
                        for moment in MOMENTS
                    },
                }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(
            f"{path}: found no readable training state, expected one: {error}; "
            "delete it to resume from the one before"
        ) from None
    return Saved(step=step, run=saved, more=more)


def _check_same_run(path: Path, saved: Mapping[str, str], run: Mapping[str, str]) -> None:
    for key in sorted(saved.keys() | run.keys()):
        was, found = saved.get(key), run.get(key)
        # Held-out rows may be added or left out on the way; their losses must stay comparable.
        if was == found or (key == "eval_data" and None in (was, found)):
            continue
        raise TrainingError(
            f"{path}: was saved with {key} = {_shown(was)}, found {_shown(found)}; resume with "
            "the same settings and contents, or start again with --overwrite"
        )


def _shown(value: str | None) -> str:
    """A digest by its beginning."""
    return f"{value[:12]}…" if value and _DIGEST.fullmatch(value) else str(value)
