"""Weights in the types of their files: the bits of float32, and no copy in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remix_runtime.engines.embedded.config import EmbeddedConfig, Weights
from remix_runtime.engines.embedded.core import EngineCore
from remix_runtime.engines.embedded.modules import ServedLinear, StoredEmbedding
from remix_runtime.engines.embedded.startup import build_core
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import native
from remix_runtime.kernels.cpu import PackedLinear
from remix_runtime.kernels.panels import dequantize, quantize
from tests.models import FAMILIES, VOCAB_SIZE, random_checkpoint, save_tiny_base, tiny_model
from tests.unit.engines.test_bits import free, job_of, logits

needs_native = pytest.mark.skipif(native.lib() is None, reason="no C compiler")
WEIGHTS = "model.safetensors"


def core_of(base: Path, weights: Weights = "stored", **settings: Any) -> EngineCore:
    return build_core(
        EmbeddedConfig(model=str(base), kv_cache_bytes=1 << 21, weights=weights, **settings)
    )


def network_of(core: EngineCore) -> nn.Module:
    network = core.runner._network
    assert isinstance(network, nn.Module)
    return network


def answers(core: EngineCore, family: str) -> list[Tensor]:
    """Last logits of prompts with and without an adapter, by the fused model and by modules; and
    with more tokens than a tile of the kernels has."""
    checkpoint = random_checkpoint(tiny_model(family))
    core.bank.add(core.bank.prepare(checkpoint))
    found = []
    for length in (1, 5, 40):
        prompt = torch.randint(0, VOCAB_SIZE, (length,), generator=torch.Generator().manual_seed(1))
        for digest in (None, checkpoint.digest):
            for by_modules in (False, True):
                item = job_of(core, prompt.tolist(), digest)
                # Recording routes runs the model's own modules.
                (row_V,) = logits(core, [item], [[length]], routes={} if by_modules else None)
                free(core, item)
                found.append(row_V)
    return found


@needs_native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_the_bits_of_the_float32_run(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    base = save_tiny_base(tmp_path, family, dtype=dtype)
    stored, wide = core_of(base), core_of(base, "float32")
    assert (stored.runner._native is not None) == ("gemma" not in family)
    for found, expected in zip(answers(stored, family), answers(wide, family), strict=True):
        assert torch.equal(found, expected)


@needs_native
def test_each_tensor_has_a_type_of_its_own(tmp_path: Path) -> None:
    """Norms and the head in float32, one projection in float16, the others in bfloat16."""
    base = save_tiny_base(tmp_path, "qwen3")
    types = {
        "model.layers.0.mlp.up_proj.weight": torch.float16,
        "lm_head.weight": torch.float32,
    }
    tensors = load_file(base / WEIGHTS)
    for name, tensor in tensors.items():
        tensors[name] = tensor.to(
            types.get(name, torch.float32 if tensor.ndim == 1 else torch.bfloat16)
        )
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    stored, wide = core_of(base), core_of(base, "float32")
    kept = {
        name: module.linear.panels.dtype
        for name, module in network_of(stored).named_modules()
        if isinstance(module, ServedLinear) and isinstance(module.linear, PackedLinear)
    }
    for name, dtype in kept.items():
        real = name.replace("layers.0.blocks.", "layers.")
        assert dtype == types.get(f"{real}.weight", torch.bfloat16), name
    for found, expected in zip(answers(stored, "qwen3"), answers(wide, "qwen3"), strict=True):
        assert torch.equal(found, expected)


@needs_native
@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_no_float32_copy_of_a_weight(tmp_path: Path, family: str, weights: Weights) -> None:
    base = save_tiny_base(tmp_path, family, dtype=torch.bfloat16)
    network = network_of(core_of(base, weights))
    linears = [m.linear for m in network.modules() if isinstance(m, ServedLinear)]
    assert linears
    expected = torch.int8 if weights == "int8" else torch.bfloat16
    for linear in linears:
        assert isinstance(linear, PackedLinear)
        assert linear.panels.dtype == expected
    (table,) = (m.table_VD for m in network.modules() if isinstance(m, StoredEmbedding))
    assert table.dtype == torch.bfloat16
    # What is left: norms and angles.
    objects = [*network.modules(), *linears]
    others = [*network.parameters(), *network.buffers()]
    others += [v for o in objects for v in vars(o).values() if isinstance(v, Tensor)]
    wide = [tensor for tensor in others if tensor.dtype == torch.float32]
    assert wide
    assert all(tensor.ndim <= 1 for tensor in wide)


@needs_native
def test_a_weight_is_never_wider_while_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest float32 tensor that the start makes is a norm's or a bias's."""
    base = save_tiny_base(tmp_path, "qwen2", dtype=torch.bfloat16)
    wide: list[tuple[int, ...]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if (
                isinstance(result, Tensor)
                and result.dtype == torch.float32
                and result.device.type == "cpu"
                and func.overloadpacket == torch.ops.aten._to_copy
            ):
                wide.append(tuple(result.shape))
            return result

    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # so that tensors are made in this thread
    with Watch():
        core_of(base)
    assert wide
    assert all(len(shape) == 1 for shape in wide)


@needs_native
def test_int8_is_the_float32_run_of_the_dequantized_weights(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path / "stored", "qwen2", dtype=torch.bfloat16)
    same = save_tiny_base(tmp_path / "same", "qwen2", dtype=torch.bfloat16)
    tensors = load_file(base / WEIGHTS)
    for name, tensor in tensors.items():
        wide = tensor.float()
        if tensor.ndim == 2 and "embed" not in name:
            wide = dequantize(*quantize(tensor))
        tensors[name] = wide
    save_file(tensors, same / WEIGHTS, metadata={"format": "pt"})
    short, wide_core = core_of(base, "int8"), core_of(same, "float32")
    for found, expected in zip(answers(short, "qwen2"), answers(wide_core, "qwen2"), strict=True):
        assert torch.equal(found, expected)


@needs_native
@pytest.mark.parametrize("weights", ["stored", "int8"])
def test_a_tied_head(tmp_path: Path, weights: Weights) -> None:
    """One tensor of the file is a table of rows in its own type, and the head's panels."""
    model = tiny_model("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = save_tiny_base(tmp_path)
    model.bfloat16().save_pretrained(base)
    assert "lm_head.weight" not in load_file(base / WEIGHTS)
    network = network_of(core_of(base, weights))
    (table,) = (m.table_VD for m in network.modules() if isinstance(m, StoredEmbedding))
    head = network.get_output_embeddings()  # type: ignore[operator]
    assert table.dtype == torch.bfloat16
    assert head.linear.panels.dtype == (torch.int8 if weights == "int8" else torch.bfloat16)
    x_TD = torch.randn(3, 64)
    rows_VD = dequantize(*quantize(table)) if weights == "int8" else table.float()
    torch.testing.assert_close(head(x_TD), x_TD @ rows_VD.T, atol=1e-5, rtol=1e-5)


@needs_native
def test_what_generation_config_says_is_kept(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path, dtype=torch.bfloat16)
    file = base / "generation_config.json"
    fields = json.loads(file.read_text()) | {"eos_token_id": [3, 258]}
    file.write_text(json.dumps(fields))
    assert core_of(base).runner.model.eos_token_ids == (3, 258)


def test_int8_without_native_kernels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_base(tmp_path, dtype=torch.bfloat16)
    monkeypatch.setenv("REMIX_NATIVE", "0")
    native.lib.cache_clear()
    try:
        with pytest.raises(ConfigError, match="weights: int8 needs the native CPU kernels"):
            core_of(base, "int8")
        core = core_of(base)
        assert {p.dtype for p in network_of(core).parameters()} == {torch.float32}
    finally:
        native.lib.cache_clear()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("int8", "weights: int8 needs the CPU and dtype float32; found cpu and bfloat16"),
        ("float32", "weights: found float32, expected stored for dtype bfloat16"),
    ],
)
def test_what_another_dtype_cannot_have(tmp_path: Path, weights: Weights, message: str) -> None:
    base = save_tiny_base(tmp_path, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match=message):
        core_of(base, weights, dtype="bfloat16")
    core_of(base, dtype="bfloat16")


@needs_native
def test_int8_names_the_layer_of_a_weight_that_is_no_number(tmp_path: Path) -> None:
    base = save_tiny_base(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(base / WEIGHTS)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.inf
    save_file(tensors, base / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"model\.layers\.1\.mlp\.up_proj: found a weight that"):
        core_of(base, "int8")


@needs_native
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "stored"},
        {"weights": "int8"},
        {"weights": "float32"},
        {"dtype": "bfloat16"},  # PyTorch's kernels
    ],
)
def test_a_file_that_changes_under_a_server_changes_nothing(
    tmp_path: Path, family: str, settings: dict[str, Any], dtype: torch.dtype
) -> None:
    base = save_tiny_base(tmp_path, family, dtype=dtype)
    core = core_of(base, **settings)
    expected = answers(core, family)
    size = (base / WEIGHTS).stat().st_size
    with (base / WEIGHTS).open("r+b") as file:  # in place, as cp and rsync --inplace write
        file.write(b"\xff" * size)
    for found, before in zip(answers(core, family), expected, strict=True):
        assert torch.equal(found, before)
    names = Path("/proc/self/maps")
    assert not names.exists() or str(base) not in names.read_text()
