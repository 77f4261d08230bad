"""`remix bench` itself, on a tiny model: real systems in real processes."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from benchmarks.adapters import write_random_adapters
from benchmarks.commands import bench
from benchmarks.quota import may_set_quota
from benchmarks.shape import AdapterShape
from benchmarks.speed import determinism, neighbour
from benchmarks.speed.gguf_export import GgufType, export_gguf, gguf_name, interleave_rotary
from benchmarks.speed.systems.embedded import EmbeddedSystem
from benchmarks.speed.systems.protocol import Workload
from remix_runtime.errors import ConfigError
from tests.models import save_tiny_base

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


def _bench(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_process_has_its_adapters_when_the_workload_wants_them(
    base: Path, tmp_path: Path
) -> None:
    shape = AdapterShape.parse("4,2,4")
    folders = write_random_adapters(tmp_path, base, shape, 2)
    engine = {"model": str(base), "threads": 1}
    system = EmbeddedSystem(engine, adapters=tuple(str(folder) for folder in folders))
    plain = Workload([[5, 6, 7]], 3, [None])
    adapted = Workload([[5, 6, 7], [5, 6, 7]], 3, [0, 1])
    held = []

    def answers(asked: Workload) -> list[list[int]]:
        tokens = system.run(asked).tokens
        held.append(system.engine.stats().adapters_loaded)
        return tokens

    with closing(system):
        before = answers(adapted)
        assert answers(replace(plain, unloaded=True)) == answers(plain)
        assert answers(replace(plain, unloaded=True)) == answers(plain)
        assert answers(adapted) == before
    assert held == [2, 0, 2, 0, 2, 2]


@pytest.mark.parametrize(("sittings", "rounds"), [(1, 2), (2, 1)])
def test_speed_suite_measures_judges_and_writes(
    base: Path, tmp_path: Path, sittings: int, rounds: int
) -> None:
    stem = tmp_path / "results" / "run.1"
    options = ["--base", base, "--out", stem, "--adapter-shape", "4,2,4", "--threads", 1]
    options += ["--batches", "1,3", "--prompt", "short", "--new-tokens", 4]
    options += ["--rounds", rounds, "--sittings", sittings]
    text = _bench(*options, "--peers", "generate,vllm")
    document = json.loads((tmp_path / "results" / "run.1.json").read_text())
    assert (tmp_path / "results" / "run.1.md").read_text() in text
    assert (tmp_path / "results" / "run.1.png").read_bytes().startswith(b"\x89PNG")
    assert [case["batch"] for case in document["cases"]] == [1, 3]
    for case in document["cases"]:
        for lane in ("remix", "remix, adapters loaded", "remix, 4 adapters mixed", "generate"):
            rates = [r["output"] for r in case["lanes"][lane]["rounds"]]
            assert len(rates) == 2
            assert min(rates) > 0
        # The engine and transformers agree on every greedy token of the base.
        assert case["lanes"]["remix"]["equal_to_generate"] == [1.0, 1.0]
    judged = {(g["goal"], g["case"]): g["met"] for g in document["goals"]}
    assert judged["ahead of generate", "3 x short prompt, 4 new tokens"] in (True, False)
    assert judged["ahead of vLLM CPU", "3 x short prompt, 4 new tokens"] is None
    assert "give --vllm-python" in document["left_out"]["vllm"]


def test_neighbour_suite_measures_alone_beside_and_under_a_quota(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbour, "SYSTEM", "tests.unit.benchmarks.fake_system:FakeEngine")
    stem = tmp_path / "beside"
    options = ["--base", base, "--out", stem, "--suite", "neighbour", "--threads", 1]
    text = _bench(*options, "--batches", 2, "--new-tokens", 4, "--rounds", 1)
    assert stem.with_suffix(".md").read_text() in text
    seconds = json.loads(stem.with_suffix(".json").read_text())["seconds"]
    assert seconds.keys() == {"2 requests", "start"}
    places = ["alone", "beside", "one core"] if may_set_quota() else ["alone", "beside"]
    for sides in seconds.values():
        assert sides.keys() == {
            f"{wait}, {place}" for wait in ("watched", "spinning") for place in places
        }
        assert all(len(rounds) == 1 and rounds[0] > 0 for rounds in sides.values())


def test_determinism_suite_finds_no_flip_and_sees_one_that_is_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = determinism.Sizes(
        prompt_lengths=(2, 30), requests_per_length=5, new_tokens=12, compositions=(7,)
    )
    plain = {"device": "cpu", "dtype": "float32", "threads": 1, "max_running": 16}
    chosen = [
        determinism.Setting("first", plain),
        determinism.Setting("swapped", {**plain, "max_tokens_per_step": 16}, swap=True),
        # Another number type is the control: a counter that sees nothing here is blind.
        determinism.Setting("coarse", {**plain, "dtype": "bfloat16"}),
    ]
    monkeypatch.setattr(determinism, "settings", lambda threads: chosen)
    stem = tmp_path / "flips"
    shape = AdapterShape(4, 2, 4)
    determinism.run_determinism(base, stem, shape, 1, lambda line: None, sizes)
    counts = json.loads((tmp_path / "flips.json").read_text())["counts"]
    by_setting: dict[str, list[int]] = {c["setting"]: [] for c in counts}
    for count in counts:
        assert count["requests"] == 10
        by_setting[count["setting"]].append(count["flips"])
    assert by_setting["first"] == [0, 0]
    assert by_setting["swapped"] == [0, 0]
    assert min(by_setting["coarse"]) > 0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--suite", "beauty", "suite: found 'beauty'"),
        ("--batches", "1,x", "batches: found '1,x'"),
        ("--batches", "0", "batches: found '0'"),
        ("--peers", "generate,ollama", "peers: found 'ollama'"),
        ("--prompt", "medium", "prompt: found 'medium'"),
        ("--adapter-shape", "4,5,8", "adapter shape: found '4,5,8'"),
        ("--base", "nowhere", "base: there is no folder 'nowhere'"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(
    base: Path, tmp_path: Path, option: str, value: str, message: str
) -> None:
    arguments = {"--base": str(base), "--out": str(tmp_path / "x"), option: value}
    with pytest.raises(ConfigError, match=message):
        _bench(*(part for pair in arguments.items() for part in pair))


def test_gguf_keeps_the_rotation_of_queries_and_keys() -> None:
    """Pairs (i, i + d/2) of each head become neighbours (2i, 2i + 1)."""
    heads, d = 3, 8
    rows = torch.arange(heads * d * 2).reshape(heads * d, 2)
    moved = interleave_rotary(rows.numpy(), heads)
    for head in range(heads):
        for i in range(d // 2):
            for half in (0, 1):
                old, new = head * d + i + half * d // 2, head * d + 2 * i + half
                assert moved[new].tolist() == rows[old].tolist()


def test_gguf_refuses_a_tensor_it_cannot_name() -> None:
    assert gguf_name("model.layers.12.mlp.down_proj.weight") == "blk.12.ffn_down.weight"
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.router\.weight"):
        gguf_name("model.layers.0.mlp.router.weight")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_gguf_holds_every_tensor_in_the_type_that_is_asked_for(
    tmp_path: Path, family: str, kind: GgufType
) -> None:
    gguf = pytest.importorskip("gguf")
    base = save_tiny_base(tmp_path / "base", family)
    export_gguf(base, tmp_path / "model.gguf", kind)
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    stored = load_file(base / "model.safetensors")
    assert found.keys() == {gguf_name(name) for name in stored}
    assert ("blk.0.attn_q.bias" in found) == (family == "qwen2")
    for name, tensor in stored.items():
        if "q_proj" in name or "k_proj" in name:
            continue  # whose rows llama.cpp wants in another order
        written = found[gguf_name(name)]
        assert written.tensor_type.name == ("F32" if tensor.ndim == 1 else kind)
        values = torch.tensor(gguf.quants.dequantize(written.data, written.tensor_type))
        limit = {"F32": 0.0, "BF16": 2**-8, "Q8_0": 0.02}[kind] * tensor.abs().max()
        assert (values.view(tensor.shape) - tensor).abs().max() <= limit
