"""The quarantine has bounds, and keeps what came last."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from server.store import AdapterStore, RejectedAdapterError
from tests.unit.adapter.checkpoint.adapters import edit_config
from tests.unit.store.conftest import contents


async def rejected(store: AdapterStore, adapter: Path, peft_type: str) -> str:
    """The adapter with another type goes to quarantine; under what id."""
    edit_config(adapter, {"peft_type": peft_type})
    with pytest.raises(RejectedAdapterError) as caught:
        await store.import_from(str(adapter))
    return caught.value.quarantine_id


async def test_quarantine_is_bounded_and_keeps_the_newest(
    store: AdapterStore, root: Path, adapter: Path
) -> None:
    ids = [await rejected(store, adapter, f"LORA{index}") for index in range(5)]
    assert [entry.id for entry in store.quarantined()] == ids[:1:-1]
    assert sorted(os.listdir(root / "quarantine")) == ids[2:]


async def test_quarantine_keeps_the_newest_also_when_the_clock_is_put_back(
    store: AdapterStore, root: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, years = time.time_ns(), 10**18
    ids = []
    for ahead in (years, 0, 1, -years, 2):
        monkeypatch.setattr(time, "time_ns", lambda ahead=ahead: now + ahead)
        ids.append(await rejected(store, adapter, f"LORA{ahead}"))
    assert [entry.id for entry in store.quarantined()] == ids[:1:-1]
    assert sorted(os.listdir(root / "quarantine")) == ids[2:]


async def test_quarantine_is_bounded_in_bytes(tmp_path: Path, adapter: Path) -> None:
    size = sum(map(len, contents(adapter).values()))
    store = AdapterStore(tmp_path / "store", quarantine_bytes=3 * size)
    for _ in range(5):
        await rejected(store, adapter, "LORA")
    assert len(store.quarantined()) == 2  # the reason adds to an adapter's size
    store.close()
