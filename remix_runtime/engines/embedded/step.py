"""What the layers of a model need to know of the step that is being computed.

Set around each forward pass of a model's own code and read by the attention function and the
adapted linears, so that what is between them stays as transformers wrote it. Never nested.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from torch import Tensor

from remix_runtime.kernels import Batch
from remix_runtime.kernels.attention import AttentionBatch, PagedKV


@dataclass(slots=True)
class Step:
    """Tokens of all jobs are packed in one row of T."""

    attention: AttentionBatch
    kv: PagedKV
    mixture: Batch
    routes: dict[str, Tensor] | None = None
    """If given, adapted linears write the experts that each token activated here: int32 [T,
    MAX_TOP_K] by module name, ascending, padded with -1."""


_current: ContextVar[Step | None] = ContextVar("remix_step", default=None)


def current_step() -> Step:
    step = _current.get()
    assert step is not None, "a served model runs inside `computing` only"
    return step


@contextmanager
def computing(step: Step) -> Iterator[None]:
    assert _current.get() is None, "steps are never nested"
    _current.set(step)
    try:
        yield
    finally:
        _current.set(None)
