"""Fixtures that several rooms' tests share."""

from collections.abc import Iterator

import pytest

from remix_runtime.kernels import attention, cpu, elementwise, native


@pytest.fixture
def without_native_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine without a C compiler: everything takes the PyTorch path."""
    caches = (cpu._functions, attention._native_attend, elementwise._native)
    monkeypatch.setattr(native, "lib", lambda: None)
    for cache in caches:
        cache.cache_clear()
    assert not cpu.available()
    yield
    for cache in caches:
        cache.cache_clear()
