"""Why a set is not made live."""

from __future__ import annotations

from collections.abc import Mapping

from remix_runtime.errors import RemixError


class BadSetError(RemixError):
    """Adapters of a wanted set cannot be served (422). `reasons`: why, by their names in the set.

    The set that was live goes on.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        some = "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:5])
        more = f"; and {len(reasons) - 5} more" if len(reasons) > 5 else ""
        super().__init__(f"the set was not changed: {some}{more}")
        self.reasons = dict(reasons)
