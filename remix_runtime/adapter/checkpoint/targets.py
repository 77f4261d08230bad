"""Which linears of a base model an adapter's `target_modules` names."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from remix_runtime.adapter.checkpoint.types import BaseShapes
from remix_runtime.errors import CheckpointMismatchError


class Targets:
    """The names in `target_modules`. What a question costs depends on the module's name alone, not
    on how many there are: whoever wrote the folder chose both."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)

    def naming(self, module: str) -> Iterator[str]:
        """Those that name `module`. PEFT's rule: a target is the whole module name or its last
        components."""
        start = 0
        while True:
            if (suffix := module[start:]) in self._names:
                yield suffix
            dot = module.find(".", start)
            if dot < 0:
                return
            start = dot + 1


def target_shapes(
    shapes: BaseShapes, target_modules: Collection[str]
) -> dict[str, tuple[int, int]]:
    """The linears that `target_modules` names, in sorted order.

    Raises `CheckpointMismatchError` for a target that names none.
    """
    targets, found = Targets(target_modules), {}
    unused = dict.fromkeys(target_modules)
    for name in sorted(shapes):
        for target in targets.naming(name):
            found[name] = shapes[name]
            unused.pop(target, None)
    for target in unused:
        last = sorted({name.rsplit(".", 1)[-1] for name in shapes})
        raise CheckpointMismatchError(
            f"target_modules: {target!r} names no linear layer of the base model; "
            f"its linear layers end in {', '.join(last)}"
        )
    return found
