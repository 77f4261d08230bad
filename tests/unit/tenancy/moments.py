"""The moments of a call at which something may happen to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from sqlalchemy import event

from server.tenancy import Directory


class Moment:
    """Does something at the `step`-th moment of what a directory does: before and after each
    statement, before the commit."""

    KINDS = ("before_cursor_execute", "after_cursor_execute", "commit")

    def __init__(self, directory: Directory, step: int, act: Callable[[], None]) -> None:
        self._engine = directory._database.engine.sync_engine
        self._left = step
        self._act = act

    @property
    def came(self) -> bool:
        return self._left <= 0

    def __enter__(self) -> Self:
        for kind in self.KINDS:
            event.listen(self._engine, kind, self._count)
        return self

    def __exit__(self, *_: object) -> None:
        for kind in self.KINDS:
            event.remove(self._engine, kind, self._count)

    def _count(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            self._act()
