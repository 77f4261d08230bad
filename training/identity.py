"""What a run is made from, by content: a resumed run goes on with the same base and rows, wherever
they lie now."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from remix_runtime.base.folder import find_base
from remix_runtime.errors import ConfigError

_PARTS = {
    "base config": (CONFIG_NAME,),
    "base tokenizer": (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.*",
        "merges.txt",
        "*.model",
    ),
    "base chat template": ("chat_template.*", "additional_chat_templates/*"),
}
_CHUNK = 1 << 22
"""Bytes that are hashed at a time."""


def base_contents(base: str) -> Mapping[str, str]:
    """The digest of each part of a base that is here: weights, config, tokenizer, template.

    Links are followed, and weights are known by their bytes alone, so that a folder, a copy of it
    and a hub's cache are the same base. Raises `ConfigError`.
    """
    try:
        folder = find_base(base)
        parts = {part: _of_files(folder, patterns) for part, patterns in _PARTS.items()}
        return {**parts, "base weights": _of_weights(folder)}
    except OSError as error:
        raise ConfigError(f"base: {base!r} cannot be read: {error}") from None


def _matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for glob in patterns for path in folder.glob(glob) if path.is_file()})


def _of_files(folder: Path, patterns: tuple[str, ...]) -> str:
    """Of names and bytes: which file a tokenizer is read from changes it."""
    digest = sha256()
    for path in _matches(folder, patterns):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _of_weights(folder: Path) -> str:
    whole = folder / SAFE_WEIGHTS_NAME
    files = [whole] if whole.is_file() else _matches(folder, ("*.safetensors",))
    digest = sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
