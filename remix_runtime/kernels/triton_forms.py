"""The forms that the ReMix addition can take on a GPU, which one to take, and sizes of programs.

Every form has two parts: what needs only x, which can run beside the base product, and what adds
to its y.

Shape suffixes: D input width, O all slices' outputs, M rows of A and of Bᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Form(IntEnum):
    """How the addition is computed. All give the same routes; sums differ by rounding."""

    ROWS_CHOSEN = 0
    """Three launches: logits; A x of each token's own experts; Bᵀ of the same. The fewest bytes
    for tokens of different adapters."""
    TILES = 1
    """Two launches: logits and A x of all experts; then Bᵀ, for `FEW` tokens of a slot at a time:
    all of it where these are several, so that weights are read once per tile, and of the chosen
    experts where it is one token."""
    PROMPT = 2
    """Four launches, for `MANY` tokens at a time: logits; A x; selection; Bᵀ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where the forms change, set from the tables of `benchmarks/gpu_mixture.py` on an H100."""

    chosen_adapters: int = 32
    """From so many possible adapters, one token of each: `ROWS_CHOSEN`. High, because the host
    often knows no more than the number of slots, and where tokens turn out to share an adapter
    `TILES` wins."""
    prompt_tokens: int = 256
    """From so many tokens: `PROMPT`."""
    small_prompt_tokens: int = 1024
    """The same for small linears, where launches are most of it."""
    small: int = 1 << 23
    """D · O of a small linear."""


THRESHOLDS = Thresholds()


def choose_form(
    num_tokens: int, max_adapters: int, size: int, thresholds: Thresholds = THRESHOLDS
) -> Form:
    """The form for a step, from what the host knows of it: nothing is asked of the device. `size`:
    D · O."""
    is_small = size < thresholds.small
    if num_tokens >= (thresholds.small_prompt_tokens if is_small else thresholds.prompt_tokens):
        return Form.PROMPT
    is_alone = num_tokens <= max_adapters
    return (
        Form.ROWS_CHOSEN if is_alone and max_adapters >= thresholds.chosen_adapters else Form.TILES
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes of programs. `benchmarks/gpu_mixture.py` times other values."""

    span: int = 512
    """Columns of D in one partial sum of logits. Another value gives them other bits."""
    shrink_span: int = 1024
    """The same of A x of all experts."""
    chosen_span: int = 512
    """The same of A x of a token's own experts."""
    prompt_span: int = 1024
    row_outputs: int = 1024
    """Outputs of a program for one token; half as many below `wide` outputs."""
    row_rows: int = 16
    """Rows of Bᵀ that it has in flight."""
    row_warps: int = 4
    tile_outputs: int = 128
    """Outputs of a program for a tile; half as many below `wide` outputs."""
    tile_rows: int = 32
    """Rows of Bᵀ that it has in flight."""
    wide: int = 8192
    is_sparse: bool = True
    """`TILES` reads only the chosen rows of Bᵀ for a tile of one token."""
    overlaps_launches: bool = True
    """A kernel starts before the end of the one whose results it needs (Hopper and later)."""


TUNING = Tuning()
