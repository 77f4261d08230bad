"""`remix train --push-to-hub`: what goes to the hub, and what is known before a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import yaml
from huggingface_hub import HfApi

from remix_runtime.cli import run
from remix_runtime.errors import ConfigError, TrainingError
from tests.unit.training.conftest import MakeConfig
from training.config import TrainConfig
from training.push import push, require_pushable

pytestmark = pytest.mark.usefixtures("one_thread", "no_plots")


class Hub:
    """What a hub was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[str, bool]] = []
        self.files: dict[str, set[str]] = {}

        def make(_: HfApi, name: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            self.made.append((name, private))

        def upload(_: HfApi, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
            assert self.made[-1][0] == repo_id
            self.files[repo_id] = {path.name for path in folder_path.iterdir()}
            return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

        monkeypatch.setattr(HfApi, "whoami", lambda _: {"name": "me"})
        monkeypatch.setattr(HfApi, "create_repo", make)
        monkeypatch.setattr(HfApi, "upload_folder", upload)


def recipe(config: TrainConfig, path: Path) -> Path:
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return path


def test_the_adapter_goes_to_the_hub_in_private(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = Hub(monkeypatch)
    config = make_config(steps=1, base_name="someone/base")
    words = ["train", str(recipe(config, tmp_path / "r.yaml")), "--push-to-hub", "me/adapter"]
    assert run(words) == 0
    assert "pushed: https://hub/me/adapter/commit/1" in capsys.readouterr().out
    assert hub.made == [("me/adapter", True)]
    written = {path.name for path in (config.output / "adapter").iterdir()}
    assert hub.files == {"me/adapter": written}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= written
    push(config.output / "adapter", "me/other", public=True)
    assert hub.made[-1] == ("me/other", False)
    capsys.readouterr()
    assert run(["train", words[1], "--overwrite", "--public"]) == 1
    assert "public: found without --push-to-hub" in capsys.readouterr().err


def test_what_cannot_be_pushed_is_known_before_the_run(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"base_name: found .*, expected the base's name on the"):
        require_pushable("me/adapter", make_config())
    named = {"base_name": "someone/base"}
    with pytest.raises(ConfigError, match="push_to_hub: found with method softmax"):
        require_pushable("me/adapter", make_config(method="softmax", **named))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("me/adapter", "no name/at all/here"):
        with pytest.raises(
            ConfigError, match=f"push_to_hub: {name}: cannot be pushed to: "
        ) as caught:
            require_pushable(name, make_config(**named))
        assert "\n" not in str(caught.value)


def test_an_adapter_that_was_not_pushed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("the line\nis cut")

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: None)
    monkeypatch.setattr(HfApi, "upload_folder", fail)
    with pytest.raises(TrainingError, match=r"is written, but .* hf upload me/adapter") as caught:
        push(tmp_path, "me/adapter", public=False)
    assert "\n" not in str(caught.value)
    assert tmp_path.is_dir()
