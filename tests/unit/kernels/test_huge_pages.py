"""Tensors that share mappings behave like tensors of their own."""

from __future__ import annotations

import gc
import mmap
import weakref

import pytest
import torch

from remix_runtime.kernels import huge_pages
from remix_runtime.kernels.huge_pages import Arena


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros(dtype: torch.dtype) -> None:
    tensor = huge_pages.zeros(3, 700, dtype=dtype)
    assert (tensor.shape, tensor.dtype) == ((3, 700), dtype)
    assert not tensor.any()


def test_tensors_of_an_arena_are_aligned_and_do_not_overlap() -> None:
    arena = Arena(1000)  # bytes: some share a chunk, the largest has its own
    sizes = [(3, 5), (1,), (2, 7, 3), (500,), (4, 4)]
    tensors = [arena.zeros(*size) for size in sizes]
    for number, tensor in enumerate(tensors, start=1):
        tensor.fill_(number)
    for number, (tensor, size) in enumerate(zip(tensors, sizes, strict=True), start=1):
        assert tensor.shape == size
        assert tensor.data_ptr() % 64 == 0
        assert (tensor == number).all()
    # The first two are neighbours.
    assert tensors[1].data_ptr() - tensors[0].data_ptr() == 64


def test_a_chunk_goes_with_its_last_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = []

    class Watched(mmap.mmap):
        def __init__(self, *_: object, **__: object) -> None:
            chunks.append(weakref.ref(self))

    monkeypatch.setattr(huge_pages.mmap, "mmap", Watched)
    arena = Arena(256)
    first, second = arena.zeros(16), arena.zeros(16)
    last = arena.zeros(64)  # no room: a new chunk
    assert len(chunks) == 2
    del first
    gc.collect()
    assert chunks[0]() is not None
    del second
    gc.collect()
    assert chunks[0]() is None
    assert not last.any()
