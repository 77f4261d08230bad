"""Says what a long step of a command does, from its first moment on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Move = Callable[[float], None]
"""Moves a bar to a share between 0 and 1."""


@contextmanager
def stage(console: Console, what: str) -> Iterator[Move]:
    """Shows `what` while its block runs: a bar on a terminal, which pulses until it is moved, and
    one line elsewhere."""
    if not console.is_terminal:
        console.print(f"{what} …", markup=False, highlight=False, soft_wrap=True)
        yield lambda _: None
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=None)
        yield lambda share: progress.update(task, total=1.0, completed=share)
