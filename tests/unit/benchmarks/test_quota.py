"""A CPU quota is one that the runtime sees, and it ends with its block."""

from __future__ import annotations

import pytest

from benchmarks.quota import cpu_quota, may_set_quota
from remix_runtime.threads import available_cores


@pytest.mark.skipif(not may_set_quota(), reason="makes a control group of version 1")
def test_a_quota_holds_inside_its_block() -> None:
    before = available_cores()
    with cpu_quota(1):
        assert available_cores() == 1
    assert available_cores() == before
