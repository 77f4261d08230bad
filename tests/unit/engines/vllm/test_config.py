"""Settings out of range are refused by name; so are other engines' options."""

from __future__ import annotations

from typing import Any

import pytest

from remix_runtime.engines.vllm import plugin
from remix_runtime.engines.vllm.config import VllmConfig
from remix_runtime.engines.vllm.engine import VllmEngine
from remix_runtime.errors import ConfigError
from server.engines import make_engine, parse_engine_args


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_running", 0),
        ("max_model_len", -1),
        ("tensor_parallel_size", 0),
        ("adapter_rows", 48),
        ("host_adapters", 7),
        ("served_model_name", ""),
        ("served_model_name", "a\nb"),
    ],
)
def test_a_setting_out_of_range_is_named(setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{setting}: found"):
        VllmConfig(model="m", **{setting: value})  # type: ignore[arg-type]


def test_defaults_are_in_range() -> None:
    assert VllmConfig(model="m").host_adapters >= VllmConfig(model="m").adapter_slots


@pytest.mark.parametrize(
    ("engine", "option", "value"),
    [("vllm", "kv_cache_bytes", 1 << 20), ("embedded", "tensor_parallel_size", 2)],
)
def test_another_engines_option_is_named(engine: Any, option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')}: the {engine} engine"):
        make_engine(engine, "m", {option: value})


def test_options_that_were_not_given_are_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "installed_version", lambda: "0.32.0")
    engine = make_engine("vllm", "m", {"kv_cache_bytes": None, "adapter_slots": 3})
    assert isinstance(engine, VllmEngine)
    assert engine._config == VllmConfig(model="m", adapter_slots=3)


def test_a_missing_vllm_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "installed_version", lambda: None)
    with pytest.raises(ConfigError, match="pip install"):
        make_engine("vllm", "m", {})


def test_engine_arguments_are_a_json_object() -> None:
    assert parse_engine_args(None) is None
    assert parse_engine_args('{"swap_space": 1, "x": [true]}') == {"swap_space": 1, "x": [True]}
    for text in ("[1]", "1", "{", ""):
        with pytest.raises(ConfigError, match=r"engine_args: .*expected a JSON object"):
            parse_engine_args(text)
