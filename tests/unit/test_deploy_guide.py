"""docs/deploy.md: its commands are understood, and its sums are those of the code."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
import torch

from remix_runtime.adapter.checkpoint.types import LayerWeights
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.kernels.attention import PAGE_TOKENS, page_bytes
from remix_runtime.kernels.mixture import MixtureWeights
from server import budget
from tests.deployed import Served
from tests.helm import CHART

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
LAYERS, KV_HEADS, HEAD = 32, 8, 128
HIDDEN, WIDE = 4096, 14336
"""Llama-3.1-8B, of the worked example."""


def commands() -> list[list[str]]:
    """The lines of the guide's shell blocks, as words."""
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line]


def row(name: str) -> list[float]:
    """The numbers of a row of the worked example, in bytes."""
    (cells,) = re.findall(rf"^\| {name} \| (.*) \|$", GUIDE.partition("For example")[2], re.M)
    scale = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    return [float(n) * scale[unit] for n, unit in re.findall(r"(\d+) (\w+)", cells)]


def adapter_bytes(*, plain: bool) -> int:
    """What the engine lays an adapter of the example out in. Its numbers are exact in bfloat16."""

    def linear(inputs: int, outputs: int) -> int:
        layer = LayerWeights(
            torch.zeros(8, 8, inputs), torch.zeros(8, outputs, 8), torch.zeros(8, inputs)
        )
        return MixtureWeights.from_layer(layer, 4, 0.5, plain=plain).num_bytes

    return LAYERS * (2 * linear(HIDDEN, WIDE) + linear(WIDE, HIDDEN))


@pytest.mark.parametrize(("column", "plain"), [(0, False), (1, True)])
def test_adapter_bytes_of_the_example_are_the_bank_s(column: int, plain: bool) -> None:
    numbers = 8 * (8 * (HIDDEN + WIDE) + HIDDEN) * 2 + 8 * (8 * (HIDDEN + WIDE) + WIDE)
    size = LAYERS * numbers * (4 if plain else 2)
    assert size <= adapter_bytes(plain=plain) < 1.01 * size  # whole tiles
    (slots,) = re.findall(r"^\| (\d+) slots \|", GUIDE, re.M)
    default = EmbeddedConfig.__dataclass_fields__["adapter_slots"].default
    assert int(slots) == default
    assert row("an adapter")[column] == math.ceil(size / (1 << 20)) * (1 << 20)
    assert row(f"{slots} slots")[column] == int(slots) * row("an adapter")[column]


@pytest.mark.parametrize(("column", "dtype"), [(0, torch.float32), (1, torch.bfloat16)])
def test_kv_bytes_of_the_example_are_those_of_pages(column: int, dtype: torch.dtype) -> None:
    token = page_bytes([KV_HEADS] * LAYERS, [HEAD] * LAYERS, dtype) / PAGE_TOKENS
    assert row("a token's keys and values")[column] == token
    assert token == dtype.itemsize * 2 * LAYERS * KV_HEADS * HEAD
    assert row("32 requests of 4096 tokens")[column] == 32 * 4096 * token


def test_the_pods_of_the_example_are_those_of_the_chart_s_target() -> None:
    ((rate, seconds),) = re.findall(r"(\d+) a second of (\d+) seconds", GUIDE)
    ((at_once, pods),) = re.findall(r"are (\d+) at once, so (\d+) pods", GUIDE.replace("\n", " "))
    assert int(at_once) == int(rate) * int(seconds)
    ((target,),) = [re.findall(r"runningPerPod: (\d+)", (CHART / "values.yaml").read_text())]
    assert int(target) == 3 * EmbeddedConfig.__dataclass_fields__["max_running"].default // 4
    assert int(pods) == math.ceil(int(at_once) / int(target))


def test_the_process_takes_what_the_budget_says() -> None:
    assert f"| the process | {budget.PROCESS_BYTES >> 20} MiB" in GUIDE


def test_the_server_understands_what_docker_is_told_to_run() -> None:
    (run,) = [words for words in commands() if words[:2] == ["docker", "run"]]
    image = run.index("remix-serve:gpu")
    served = Served(run[image + 1 :], {})
    assert served.options["engine"] == "vllm"
    mounted = {words.split(":")[1] for words in run[:image] if words.endswith(":ro")}
    assert served.options["base"] in mounted
    (adapter,) = served.options["adapter"]
    assert any(Path(adapter.split("=")[1]).is_relative_to(folder) for folder in mounted)
    assert "--read-only" in run
    stop = float(run[run.index("--stop-timeout") + 1])
    assert stop > 30  # the default of --drain-seconds
    for words in commands():
        if words[:2] == ["docker", "build"]:
            assert (ROOT / words[words.index("-f") + 1]).is_file()


def test_the_guide_s_values_are_the_chart_s() -> None:
    named = set(re.findall(r"deploy/chart/values/([\w-]+)\.yaml", GUIDE))
    assert named == {path.stem for path in (CHART / "values").glob("*.yaml")}
