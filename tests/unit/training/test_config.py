"""Defaults, conversions and refusals of the training settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remix_runtime.errors import ConfigError
from training.config import TrainConfig, load_config, parse_config

REQUIRED = {"base": "b", "data": "d.jsonl", "output": "o"}


def test_the_defaults_are_the_papers() -> None:
    config = parse_config(REQUIRED)
    adapter = config.adapter
    assert (adapter.num_experts, adapter.top_k, adapter.r) == (8, 4, 8)
    assert adapter.routing_weight == pytest.approx(2 / 32**0.5)
    assert adapter.target_modules == ("gate_proj", "up_proj", "down_proj")
    assert config.selections == 4
    assert config.router_learning_rate is None  # rates follow from router_logits_per_step


def test_plain_lora_is_one_expert_of_the_activated_rank_with_the_same_weight() -> None:
    config = parse_config({**REQUIRED, "method": "lora", "top_k": 3, "r": 4, "scaling": "lora"})
    adapter = config.adapter
    assert (adapter.num_experts, adapter.top_k, adapter.r) == (1, 1, 12)
    assert adapter.routing_weight == pytest.approx(2 / 12)


def test_a_file_is_read_with_paths_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    (tmp_path / "local-base").mkdir()
    path.write_text(
        "base: local-base\ndata: rows.jsonl\neval_data: /abs/held.jsonl\noutput: out\n"
        "router_learning_rate: 3e-2\nexpert_learning_rate: 1\ntarget_modules: [up_proj]\n"
    )
    config = load_config(path)
    assert config.data == tmp_path / "rows.jsonl"
    assert config.eval_data == Path("/abs/held.jsonl")
    assert config.output == tmp_path / "out"
    assert config.base == str(tmp_path / "local-base")
    assert config.router_learning_rate == 0.03
    assert config.target_modules == ("up_proj",)
    path.write_text("base: someone/some-model\ndata: d\noutput: o\n")
    assert load_config(path).base == "someone/some-model"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_expert": 4}, "unknown setting 'num_expert'; the nearest is 'num_experts'"),
        ({"learning_rate": 1e-3}, "unknown setting 'learning_rate'; the nearest is '.*_rate'"),
        ({"zzz": 1}, "unknown setting 'zzz'; the nearest is "),
        ({"top_k": 9}, "top_k: found 9, expected at most num_experts = 8"),
        ({"selections": 1}, "selections: found 1, expected .*greater than or equal to 2"),
        ({"top_k": "4"}, "top_k: found '4', expected a valid integer"),
        ({"top_k": True}, "top_k: found True, expected a valid integer"),
        ({"r": 0}, "r: found 0, expected greater than or equal to 1"),
        ({"method": "dora"}, "method: found 'dora', expected 'remix', 'lora' or 'softmax'"),
        ({"expert_learning_rate": "fast"}, "expert_learning_rate: found 'fast', expected"),
        ({"expert_learning_rate": float("nan")}, "expert_learning_rate: found nan, expected"),
        ({"expert_learning_rate": 0}, "expert_learning_rate: found 0, expected a positive"),
        ({"target_modules": []}, r"target_modules: found \[\], expected"),
        ({"target_modules": "up_proj"}, "target_modules: found 'up_proj', expected"),
        ({"method": "lora", "selections": 8}, "selections: found with method lora, expected only"),
        ({"method": "softmax", "credit": "causal"}, "credit: found with method softmax"),
        ({"data": None}, "data: found None, expected"),
        ({"expert_learning_rate": True}, "expert_learning_rate: found True, expected a number"),
        (
            {"router_learning_rate": 1e-3, "router_logits_per_step": 0.1},
            "router_learning_rate: found beside router_logits_per_step, expected one",
        ),
        ({"seed": 1 << 64}, "seed: found 18446744073709551616, expected"),
        ({"threads": 1 << 40}, "threads: found 1099511627776, expected"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_expected(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config({**REQUIRED, **settings})
    assert "\n" not in str(caught.value)


def test_every_setting_is_explained() -> None:
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name


def test_a_missing_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="base: found nothing, expected a value"):
        parse_config({"data": "d", "output": "o"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "found list, expected a mapping"),
        ("", "found NoneType, expected a mapping"),
        ("base: [unclosed\n", "found no valid YAML"),
        ("seed: 2020-13-45\n", "found no valid YAML"),
        ("[" * 20_000, "found no valid YAML"),
        ("nonsense: 1\n", r"run\.yaml: unknown setting 'nonsense'"),
        ("seed: 1\nseed: 2\n", r"run\.yaml: .*'seed' twice"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(Path("nowhere.yaml"))
