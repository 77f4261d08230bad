"""Which modules a plain LoRA adapts, and at which rank: as PEFT's own functions say."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig as PeftLoraConfig
from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists
from peft.utils.other import get_pattern_key

from remix_runtime.adapter.checkpoint.layouts import LoraLayout
from remix_runtime.adapter.checkpoint.lora_config import lora_config
from remix_runtime.adapter.checkpoint.name_pattern import MAX_PATTERN, name_pattern
from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS

PROJECTIONS = ("q_proj", "v_proj", "up_proj", "down_proj", "my_q_proj")
NAMES = [
    *(f"model.layers.{i}.self_attn.{p}" for i in (0, 1, 10) for p in PROJECTIONS),
    *(f"model.layers.{i}.mlp.{p}" for i in (0, 1, 11) for p in PROJECTIONS),
    "model.layers.1.mlp.experts.0.up_proj",
    "layers.1.up_proj",
    "transformer.h.1.mlp.up_proj",
    "model.visual.blocks.2.layers.0.attn.q_proj",
    "up_proj",
    "model.layersx1.up_proj",
    "model.layers.1",
]

suffixes = st.sampled_from(
    [*PROJECTIONS, "mlp.up_proj", "layers.1.mlp.up_proj", "proj", "model.layers.1", "1.up_proj"]
)
EXPRESSION = st.lists(
    st.sampled_from(
        [
            *("model", "layers", "mlp", "q_proj", "_proj", "1", "x?", "()"),
            *(r"\.", ".", ".*", ".*?", ".+", r"\d+", r"\d{1,}", r"\d{1,2}", r"\w+", r"[^.]+"),
            *("[01]", r"[\w.]*", "(self_attn|mlp)", "(?:q|up|down)_proj"),
            *("|", "^", "$", r"\b"),
        ]
    ),
    min_size=1,
    max_size=7,
).map("".join)
modules = st.one_of(st.lists(suffixes, min_size=1, max_size=4, unique=True), EXPRESSION)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": draw(modules),
        "exclude_modules": draw(st.one_of(st.none(), modules)),
    }
    if isinstance(fields["target_modules"], list) and draw(st.booleans()):
        layers = st.integers(0, 12)
        fields["layers_to_transform"] = draw(st.one_of(layers, st.lists(layers, max_size=3)))
        names = st.sampled_from(["layers", "h", "model.layers", "blocks", "x"])
        fields["layers_pattern"] = draw(
            st.one_of(st.none(), names, st.lists(names, max_size=2, unique=True))
        )
    keys = st.one_of(suffixes, EXPRESSION, suffixes.map(lambda name: f"^{name}"))
    fields["rank_pattern"] = draw(st.dictionaries(keys, st.integers(1, 64), max_size=4))
    fields["alpha_pattern"] = draw(st.dictionaries(keys, st.integers(1, 64), max_size=4))
    fields["use_rslora"] = draw(st.booleans())
    return fields


@settings(max_examples=400)
@given(configs())
def test_modules_ranks_and_scalings_are_pefts(fields: dict[str, Any]) -> None:
    layout = LoraLayout(lora_config({"peft_type": "LORA", **fields}, DEFAULT_LIMITS))
    peft = PeftLoraConfig(**fields)
    for name in NAMES:
        found = check_target_module_exists(peft, name)
        named = bool(found) and not isinstance(found, _ExcludedModule)
        assert layout.names(name) == named, (name, fields)
        r = peft.rank_pattern.get(get_pattern_key(peft.rank_pattern, name), peft.r)
        alpha = peft.alpha_pattern.get(get_pattern_key(peft.alpha_pattern, name), peft.lora_alpha)
        mixture = layout.mixture(name)
        assert (mixture.num_experts, mixture.top_k, mixture.r) == (1, 1, r)
        assert mixture.routing_weight == alpha / (r**0.5 if peft.use_rslora else r)


def test_of_two_patterns_of_layers_the_first_counts() -> None:
    for patterns in (["blocks", "layers"], ["layers", "blocks"]):
        fields: dict[str, Any] = {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "layers_to_transform": [2],
            "layers_pattern": patterns,
        }
        name = "model.visual.blocks.2.layers.0.attn.q_proj"
        layout = LoraLayout(lora_config({"peft_type": "LORA", **fields}, DEFAULT_LIMITS))
        found = bool(check_target_module_exists(PeftLoraConfig(**fields), name))
        assert layout.names(name) == found == (patterns[0] == "blocks")


@settings(max_examples=2000)
@given(st.text(alphabet=r"ab_01.\dwbx*+?|()[]^$-{,}<>&~:=!P ", max_size=12))
def test_what_is_taken_means_the_same_to_python(pattern: str) -> None:
    try:
        fits = name_pattern(pattern)
        ends = name_pattern(pattern, is_suffix=True)
    except ValueError:
        return
    whole, suffix = re.compile(pattern), re.compile(rf"(.*\.)?({pattern})$")
    for name in ("", "a", "b", "ab", "aab", "a.b", "b.a_0", "a1", "0.1.a", "-", "a-b", "wx", "d"):
        assert fits(name) == bool(whole.fullmatch(name)), name
        assert ends(name) == bool(suffix.match(name)), name


@pytest.mark.parametrize(
    "pattern",
    [
        r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|up_proj)))",
        r".*?(?:language|text|model).*?(?:self_attn|mlp).*?(?:q_proj|up_proj).*?",
        r"^model\.layers\.(0|1|2)\.mlp\.(up|down)_proj$",
        r"model.layers.[0-9]+.mlp.up_proj",
    ],
)
def test_what_is_in_use_is_taken(pattern: str) -> None:
    fits = name_pattern(pattern)
    assert fits("model.layers.1.mlp.up_proj")
    assert not fits("model.norm")


@pytest.mark.parametrize(
    "pattern",
    ["(?:.*.*)*x", "(.*)*" * 31 + "x", ".*" * (MAX_PATTERN // 2), "(?:a|a|.)*" * 90 + "x"],
)
def test_no_expression_takes_long(pattern: str) -> None:
    """Python's own engine needs longer than the world is old for the first."""
    started = time.process_time()
    fits = name_pattern(pattern)
    for layer in range(300):
        fits(f"model.layers.{layer}.self_attn." + "a." * 60 + "y")
    assert time.process_time() - started < 5
