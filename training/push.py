"""Puts a trained adapter on the hub, where `huggingface_hub`'s settings lead: `HF_ENDPOINT`,
`HF_TOKEN`, `hf auth login`.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from remix_runtime.base.folder import one_line
from remix_runtime.errors import ConfigError, TrainingError
from training.config import TrainConfig
from training.sources import is_hub_name


def require_pushable(name: str, config: TrainConfig) -> None:
    """Raises `ConfigError`, before a run, for an adapter, a name or a token that no hub would
    take."""
    if config.method == "softmax":
        raise ConfigError("push_to_hub: found with method softmax, which writes no adapter")
    base = config.adapter.base_model_name_or_path
    if not is_hub_name(Path(base)) or Path(base).exists():
        raise ConfigError(
            f"base_name: found {base!r}, expected the base's name on the hub as OWNER/NAME: a "
            "folder of this machine says nothing there"
        )
    try:
        validate_repo_id(name)
        HfApi().whoami()
    except Exception as error:  # of the hub's client and of the libraries beneath it
        raise ConfigError(f"push_to_hub: {name}: cannot be pushed to: {one_line(error)}") from None


def push(adapter: Path, name: str, *, public: bool) -> str:
    """Uploads the adapter's folder, into a repository that it makes where there is none, and
    returns its address. Raises `TrainingError`; the folder stays."""
    try:
        HfApi().create_repo(name, private=not public, exist_ok=True)
        commit = HfApi().upload_folder(
            repo_id=name, folder_path=adapter, commit_message="An adapter by remix train"
        )
    except Exception as error:  # of the hub's client and of the libraries beneath it
        raise TrainingError(
            f"{adapter} is written, but cannot be pushed to {name}: {one_line(error)}; "
            f"try again with: hf upload {name} {adapter}"
        ) from None
    return str(commit.commit_url)
