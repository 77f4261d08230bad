"""Which modules are mutated, and which tests their mutants are shown to."""

from __future__ import annotations

from collections.abc import Mapping

LIVE, SERVER = "tests/unit/live", "tests/unit/server"

DRAWN = (
    "test_no_window_sees_more_than_its_limit_whatever_is_reserved_settled_and_refused",
    "test_who_waits_as_long_as_told_is_let_in",
)
QUOTAS = (
    f"{SERVER}/test_quotas.py",
    f"{LIVE}/test_quota_bounds.py",
    # Found by drawing examples, so they take long to tell of what fails.
    *(f"--deselect={SERVER}/test_quotas.py::{name}" for name in DRAWN),
)
MODULES: Mapping[str, tuple[str, ...]] = {
    "server/http/auth.py": (f"{SERVER}/test_key_headers.py",),
    "server/live/access.py": (f"{LIVE}/test_access.py",),
    "server/live/buckets.py": QUOTAS,
    "server/live/quotas.py": QUOTAS,
    "server/http/body.py": (f"{SERVER}/test_body.py",),
    "server/live/adapters.py": (f"{LIVE}/test_adapters.py", f"{LIVE}/loads"),
    "server/live/sets.py": (f"{LIVE}/test_sets.py",),
    "server/live/swap.py": (f"{LIVE}/test_swap.py",),
}
"""Files that are fast and the same in each run: a mutant is shown to those of their tests that call
what it changes."""
