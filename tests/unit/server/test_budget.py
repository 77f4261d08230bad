"""What may be taken of memory is summed before anything is loaded, and never more than there is."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remix_runtime.base.config import read_config
from remix_runtime.base.weights import num_parameters, weight_bytes
from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.errors import ConfigError
from remix_runtime.kernels import cpu
from server import budget
from server.budget import Part, embedded_parts, fit, memory_limit, parts_of, server_parts
from server.commands import _fit_memory
from server.settings import ServerSettings, load_settings
from tests.models import save_tiny_base, tiny_model

MIB = 1 << 20
GIB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "limit", "file"),
    [
        (
            {
                "proc/self/cgroup": "0::/pods/one\n",
                "sys/fs/cgroup/pods/one/memory.max": "max\n",
                "sys/fs/cgroup/pods/memory.max": f"{300 * MIB}\n",
            },
            300 * MIB,
            "sys/fs/cgroup/pods/memory.max",
        ),
        (  # in a container that knows only its own group, by the path of the host
            {
                "proc/self/cgroup": "0::/of/the/host\n",
                "sys/fs/cgroup/memory.max": f"{200 * MIB}\n",
            },
            200 * MIB,
            "sys/fs/cgroup/memory.max",
        ),
        (
            {
                "proc/self/cgroup": "9:name=systemd:/\n3:cpu,memory:/a/b\n2:pids:/\n",
                "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": f"{100 * MIB}",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            100 * MIB,
            "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes",
        ),
    ],
)
def test_the_strictest_control_group_counts(
    tmp_path: Path, files: dict[str, str], limit: int, file: str
) -> None:
    assert memory_limit(tree(tmp_path, files)) == (limit, f"the limit in {tmp_path / file}")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"},
        {
            "proc/self/cgroup": "1:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
        },
    ],
)
def test_without_a_limit_it_is_the_machine_s(tmp_path: Path, files: dict[str, str]) -> None:
    limit, source = memory_limit(tree(tmp_path, files))
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert (limit, source) == (total, "the machine's memory")


some_parts = st.lists(
    st.builds(
        lambda name, value, factor, least: Part(
            name=f"--{name}",
            value=value,
            factor=factor,
            least=None if least is None else int(value * least),
        ),
        st.sampled_from("abc"),
        st.integers(0, 4 * GIB),
        st.sampled_from([1.0, 1.5, 80.0]),
        st.none() | st.floats(0, 1),
    ),
    max_size=6,
)


@given(parts=some_parts, limit=st.integers(0, 16 * GIB))
def test_the_sum_never_exceeds_the_limit(parts: list[Part], limit: int) -> None:
    least = sum(part.least_bytes for part in parts)
    if least > limit:
        with pytest.raises(ConfigError) as refused:
            fit(parts, limit, "says the test")
        assert f"memory: found {-(-least // MIB)} MiB" in str(refused.value)
        assert f"expected at most {limit // MIB}, says the test" in str(refused.value)
        assert all(part.name in str(refused.value) for part in parts)
        return
    found = fit(parts, limit, "says the test")
    assert sum(part.num_bytes for part in found) <= limit
    if sum(part.num_bytes for part in parts) <= limit:
        assert found == parts
    for before, after in zip(parts, found, strict=True):
        assert replace(after, value=before.value) == before
        assert after.value == before.value or (
            before.least is not None and before.least <= after.value < before.value
        )


def settings(**given: Any) -> ServerSettings:
    return load_settings(admin_key="the-key-of-the-operator", **given)


def test_every_setting_in_bytes_is_summed(tmp_path: Path) -> None:
    """A new one that is not would make the sum less than what is taken."""
    found = server_parts(settings(data_dir=tmp_path), num_requests=1)
    found += embedded_parts({}, weight_bytes=1, on_device=False)
    wanted = {f.name for f in fields(EmbeddedConfig)} | set(ServerSettings.model_fields)
    wanted = {name for name in wanted if name.endswith("_bytes")} - {"memory_bytes"}
    names = {part.name.removeprefix("--").replace("-", "_") for part in found}
    assert wanted <= names


def test_what_the_user_gave_is_not_changed() -> None:
    assert all(
        part.least is None
        for part in embedded_parts(
            {"kv_cache_bytes": 1, "adapter_bytes": 1, "host_adapter_bytes": 1},
            weight_bytes=1,
            on_device=False,
        )
    )
    (connections,) = (
        part
        for part in server_parts(settings(max_connections=7), num_requests=1)
        if part.name == "--max-connections"
    )
    assert (connections.value, connections.least) == (7, None)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_count_in_the_type_that_they_are_held_in(
    tmp_path: Path, family: str, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_tiny_base(tmp_path, family, dtype=stored)
    parameters = list(tiny_model(family).parameters())
    number = sum(p.numel() for p in parameters)
    small = sum(p.numel() for p in parameters if p.ndim == 1)
    embedding = tiny_model(family).get_input_embeddings().weight.numel()

    def counted(**options: Any) -> int:
        given = {"device": "cpu", **options}
        parts = parts_of("embedded", str(base), given, settings())
        return next(part.num_bytes for part in parts if part.name == "the base's weights")

    as_stored = (number - small) * stored.itemsize + small * 4
    linears = (number - small - embedding) * 34 // 32  # a scale of 16 bits for 32 weights
    as_int8 = linears + embedding * stored.itemsize + small * 4
    for options, expected in (
        ({}, as_stored),
        ({"weights": "int8"}, as_int8),
        ({"weights": "float32"}, number * 4),
        ({"dtype": "bfloat16"}, number * 2),
    ):
        assert counted(**options) == expected, options
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert counted() == number * 4
    on_device = embedded_parts({}, weight_bytes=1000, on_device=True)
    assert [part.name for part in on_device] == ["--host-adapter-bytes"]


def test_a_tied_head_counts_again(tmp_path: Path) -> None:
    model = tiny_model("llama")
    untied = save_tiny_base(tmp_path / "untied")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    base = save_tiny_base(tmp_path / "tied")
    model.save_pretrained(base)
    assert num_parameters(base) < num_parameters(untied)
    found, expected = (
        weight_bytes(folder, read_config(folder), int8_bytes=1.0) for folder in (base, untied)
    )
    assert found == expected


def test_imports_are_in_the_sum_of_a_server_that_has_them(tmp_path: Path) -> None:
    def names(given: ServerSettings) -> set[str]:
        return {part.name for part in server_parts(given, num_requests=1)}

    assert names(settings(data_dir=tmp_path)) - names(settings()) == {
        "imports",
        "--max-import-bytes",
    }


def test_the_command_s_defaults_become_smaller_and_its_numbers_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "_weight_bytes", lambda *_: 400_000_000)
    options: dict[str, Any] = dict.fromkeys(f.name for f in fields(EmbeddedConfig))
    options |= {"device": "cpu", "adapter_bytes": 300 * MIB}
    tight = settings(memory_bytes=3 * GIB)
    fitted = _fit_memory("embedded", "base", options, tight)
    assert options["adapter_bytes"] == 300 * MIB
    assert 256 * MIB <= options["kv_cache_bytes"] < GIB
    assert 128 * MIB <= options["host_adapter_bytes"] < 4 * GIB
    assert fitted.max_connections < tight.max_connections
    fitting = parts_of("embedded", "base", options, fitted)
    assert sum(part.num_bytes for part in fitting) <= 3 * GIB

    options["kv_cache_bytes"] = 3 * GIB
    with pytest.raises(ConfigError, match=r"--kv-cache-bytes 3072, .*expected at most 3072, as RE"):
        _fit_memory("embedded", "base", options, tight)


def test_enough_memory_changes_nothing() -> None:
    options: dict[str, Any] = dict.fromkeys(f.name for f in fields(EmbeddedConfig))
    roomy = settings(memory_bytes=1 << 40)
    assert _fit_memory("fake", None, options, roomy) == roomy
    assert set(options.values()) == {None}
