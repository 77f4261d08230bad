"""Finds a base model's folder and reads its JSON files.

Whatever else of a base is read is read from this folder: nothing leads to another model.
"""

from __future__ import annotations

import json
import os
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from remix_runtime.errors import ConfigError

CONFIG, GENERATION = "config.json", "generation_config.json"
_ADAPTER = "adapter_config.json"

_NEEDED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
"""What a model is loaded from, of a repository's files."""


def find_base(base: str, *, download: bool = False) -> Path:
    """The folder of a base: itself, or the snapshot of a hub id. `download` fetches what of it is
    not in the local cache.

    Raises `ConfigError` for what is no folder of a model, and for one with an adapter in it, which
    transformers would load into the model by itself.
    """
    folder = Path(base) if os.path.isdir(base) else _snapshot(base, download)
    has_config = (folder / CONFIG).is_file()
    if (folder / _ADAPTER).exists():
        if has_config:
            raise ConfigError(
                f"base: {folder}: found {_ADAPTER} beside {CONFIG}, expected a model alone; move "
                "the adapter into a folder of its own"
            )
        raise ConfigError(f"base: {folder}: found an adapter, expected a model{_base_of(folder)}")
    if not has_config:
        raise ConfigError(f"base: {folder}: found no {CONFIG}, expected the folder of a model")
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file of a base. Raises `ConfigError`."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise wrong(file, f"cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict):
        raise wrong(file, f"found {type(found).__name__}, expected a JSON object")
    return found


def wrong(file: Path, reason: str) -> ConfigError:
    """The error for a file of a base."""
    return ConfigError(f"base: {file}: {reason}")


def one_line(error: BaseException) -> str:
    """What a library raised, for people: in one line, with its type where that is no sentence."""
    text = " ".join(str(error).split())
    if not isinstance(error, (OSError, ValueError)) or not text:
        text = f"{type(error).__name__}: {text}".removesuffix(": ")
    return text if len(text) <= 300 else f"{text[:300]}…"


def _snapshot(base: str, download: bool) -> Path:
    if os.path.exists(base):
        raise ConfigError(f"base: found the file {base}, expected a folder")
    getLogger("huggingface_hub").setLevel(ERROR)  # its retries; the last failure is raised
    try:
        return Path(
            snapshot_download(
                base,
                local_files_only=not download,
                allow_patterns=_NEEDED,
                ignore_patterns="*/*.safetensors",  # weights for other libraries
            )
        )
    except HFValidationError:
        raise ConfigError(f"base: there is no folder {base!r}, expected a model's") from None
    except Exception as error:  # of the hub's client and of the libraries beneath it
        where = "on the hub" if download else "in the local cache"
        raise ConfigError(
            f"base: there is no folder {base!r}, and no model of that id {where}: {one_line(error)}"
        ) from None


def _base_of(folder: Path) -> str:
    try:
        base = read_json(folder / _ADAPTER).get("base_model_name_or_path")
    except ConfigError:
        return ""
    return f"; its base is {base!r}" if isinstance(base, str) else ""
