"""Which linears of a base model an adapter's `target_modules` names."""

from __future__ import annotations

from collections.abc import Sequence

from remix_runtime.adapter.checkpoint.types import BaseShapes
from remix_runtime.errors import CheckpointMismatchError


def matches(name: str, target_modules: Sequence[str]) -> bool:
    """PEFT's rule: a target is the whole module name or its last components."""
    return any(name == target or name.endswith("." + target) for target in target_modules)


def target_shapes(shapes: BaseShapes, target_modules: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The linears that `target_modules` names, in sorted order.

    Raises `CheckpointMismatchError` for a target that names none.
    """
    for target in target_modules:
        if not any(matches(name, (target,)) for name in shapes):
            last = sorted({name.rsplit(".", 1)[-1] for name in shapes})
            raise CheckpointMismatchError(
                f"target_modules: {target!r} names no linear layer of the base model; "
                f"its linear layers end in {', '.join(last)}"
            )
    return {name: shapes[name] for name in sorted(shapes) if matches(name, target_modules)}
