"""`adapter_config.json`: what is accepted, what is refused and how."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remix_runtime.adapter.checkpoint import AdapterConfig, CheckpointLimits
from remix_runtime.adapter.checkpoint.config import canonical_json, emit_config, parse_config
from remix_runtime.errors import CheckpointFormatError
from tests.unit.adapter.checkpoint.adapters import CONFIG


def fields(**changes: object) -> bytes:
    return json.dumps({**json.loads(emit_config(CONFIG)), **changes}).encode()


REQUIRED = frozenset(json.loads(emit_config(CONFIG)))

configs = st.integers(1, 256).flatmap(
    lambda n: st.builds(
        AdapterConfig,
        base_model_name_or_path=st.text('aZ9/-_.~ "\\é中😀', max_size=20),
        num_experts=st.just(n),
        top_k=st.integers(1, n),
        r=st.integers(1, 1024),
        routing_weight=st.floats(1e-30, 1e6),
        target_modules=st.sets(
            st.sampled_from(["up_proj", "q_proj", "0.mlp.up_proj", "W_1", "3", "a.b.c.d"]),
            min_size=1,
            max_size=5,
        ).map(lambda names: tuple(sorted(names))),
    )
)


@settings(max_examples=50)
@given(configs)
def test_round_trip(config):
    assert parse_config(emit_config(config)) == config


def test_peft_fields_and_integer_weight_are_accepted_and_change_nothing():
    extra = fields(
        routing_weight=1,
        inference_mode=True,
        peft_version="0.21.2",
        auto_mapping=None,
        revision=None,
    )
    assert parse_config(extra) == CONFIG
    assert canonical_json(parse_config(extra)) == canonical_json(CONFIG)


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.one_of(
            st.sampled_from(["auto_mapping", "inference_mode", "peft_version", "revision"]),
            st.text(min_size=1, max_size=12).filter(lambda name: name not in REQUIRED),
        ),
        st.none(),
    )
)
def test_a_field_that_is_null_is_as_if_it_was_not_there(nulls):
    assert parse_config(fields(**nulls)) == CONFIG


@pytest.mark.parametrize("revision", ["main", "v1.0", "0" * 40, "refs/pr/1"])
def test_a_revision_is_kept_and_is_no_part_of_the_identity(revision):
    config = parse_config(fields(revision=revision))
    assert config == replace(CONFIG, revision=revision)
    assert parse_config(emit_config(config)) == config
    assert canonical_json(config) == canonical_json(CONFIG)


@settings(max_examples=20)
@given(st.permutations(list(json.loads(emit_config(CONFIG)).items())), st.permutations([0, 1]))
def test_order_of_keys_and_targets_means_nothing(items, order):
    shuffled = dict(items)
    shuffled["target_modules"] = [CONFIG.target_modules[i] for i in order]
    config = parse_config(json.dumps(shuffled, indent=3).encode())
    assert canonical_json(config) == canonical_json(CONFIG)


def test_every_field_is_part_of_the_canonical_form():
    changes = {
        "base_model_name_or_path": "other",
        "num_experts": 4,
        "top_k": 1,
        "r": 3,
        "routing_weight": 1.5,
        "target_modules": ("up_proj",),
    }
    forms = {canonical_json(replace(CONFIG, **{name: v})) for name, v in changes.items()}
    assert len(forms | {canonical_json(CONFIG)}) == len(changes) + 1


@pytest.mark.parametrize("name", json.loads(emit_config(CONFIG)))
def test_missing_field(name):
    content = json.loads(emit_config(CONFIG))
    del content[name]
    with pytest.raises(CheckpointFormatError, match=rf"adapter_config.json: .*{name}"):
        parse_config(json.dumps(content).encode())


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("peft_type", "LORA", "REMIX"),
        ("peft_type", None, "REMIX"),
        ("format_version", 2, "1"),
        ("format_version", "1", "1"),
        ("format_version", True, "1"),
        ("format_version", 1.0, "1"),
        ("task_type", "SEQ_CLS", "CAUSAL_LM"),
        ("task_type", ["CAUSAL_LM"], "CAUSAL_LM"),
        ("base_model_name_or_path", None, "text"),
        ("base_model_name_or_path", "a\x00b", "printable"),
        ("base_model_name_or_path", "a\nb", "printable"),
        ("base_model_name_or_path", "\ud800", "printable"),
        ("base_model_name_or_path", "x" * 5000, "at most"),
        ("num_experts", 0, "1 to 256"),
        ("num_experts", 257, "1 to 256"),
        ("num_experts", 10**300, "1 to 256"),
        ("num_experts", 3.0, "integer"),
        ("num_experts", True, "integer"),
        ("top_k", 4, "1 to 3"),
        ("top_k", 0, "1 to 3"),
        ("top_k", -1, "1 to 3"),
        ("top_k", "2", "integer"),
        ("r", 0, "1 to 1024"),
        ("r", 1025, "1 to 1024"),
        ("r", None, "integer"),
        ("routing_weight", 0, "above 0"),
        ("routing_weight", -0.5, "above 0"),
        ("routing_weight", 1e7, "above 0"),
        ("routing_weight", 10**400, "above 0"),
        ("routing_weight", True, "above 0"),
        ("routing_weight", "0.5", "above 0"),
        ("target_modules", [], "list of 1"),
        ("target_modules", "up_proj", "list of 1"),
        ("target_modules", {"up_proj": 1}, "list of 1"),
        ("target_modules", ["up_proj", "up_proj"], "once"),
        ("target_modules", ["up_proj", 3], "module name"),
        ("target_modules", [""], "module name"),
        ("target_modules", [".up_proj"], "module name"),
        ("target_modules", ["mlp.*"], "module name"),
        ("target_modules", ["../up_proj"], "module name"),
        ("target_modules", ["up_proj\n"], "module name"),
        ("auto_mapping", {"base_model_class": "X", "parent_library": "evil"}, "null"),
        ("revision", 3, "text"),
        ("revision", "a\nb", "printable text"),
        ("inference_mode", "yes", "true, false or null"),
        ("peft_version", 3, "text"),
        ("auto_map", {"AutoModel": "x.Y"}, "only"),
        ("lora_alpha", 16, "only"),
        ("use_new_trick", False, "only"),
        ("use_new_trick", {}, "only"),
    ],
)
def test_wrong_value_names_field_and_what_was_expected(name, value, expected):
    with pytest.raises(CheckpointFormatError) as caught:
        parse_config(fields(**{name: value}))
    message = str(caught.value)
    assert message.startswith("adapter_config.json: ")
    assert name in message
    assert expected in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "JSON object"),
        (b"null", "JSON object"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b'\xef\xbb\xbf{"peft_type": "REMIX"}', "not valid JSON"),
        (b'{"r": 1, "r": 2}', "twice"),
        (b'{"peft_type": {"a": 1, "a": 1}}', "twice"),
        (b'{"routing_weight": NaN}', "NaN"),
        (b'{"routing_weight": -Infinity}', "Infinity"),
        (b'{"r": ' + b"9" * 10_000 + b"}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 100_000, "not valid JSON"),
    ],
)
def test_bytes_that_are_no_json_object(data, reason):
    with pytest.raises(CheckpointFormatError, match=reason) as caught:
        parse_config(data)
    assert "\n" not in str(caught.value)


def test_limits_are_the_callers():
    limits = CheckpointLimits(num_experts=2, r=1, target_modules=1)
    for config in (CONFIG, replace(CONFIG, num_experts=2), replace(CONFIG, num_experts=2, r=1)):
        with pytest.raises(CheckpointFormatError):
            parse_config(emit_config(config), limits)
    allowed = replace(CONFIG, num_experts=2, r=1, target_modules=("up_proj",))
    assert parse_config(emit_config(allowed), limits) == allowed


@pytest.mark.parametrize(
    "change", [{"routing_weight": float("nan")}, {"top_k": 9}, {"target_modules": ()}]
)
def test_emit_refuses_what_parse_would(change):
    with pytest.raises(CheckpointFormatError):
        emit_config(replace(CONFIG, **change))
