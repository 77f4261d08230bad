"""What an import does with the examination of what came: it may fail, and it may be impossible."""

from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime.adapter.examination import ExaminationError, ExaminationLimits
from server.store import (
    AdapterStore,
    ImportStoppedError,
    RejectedAdapterError,
)
from server.store import rooms as rooms_module
from tests.unit.store.conftest import contents, leftovers


async def test_what_cannot_be_examined_now_is_kept_for_the_next_import(
    store: AdapterStore, root: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path, limits: object) -> None:
        raise ExaminationError("no process could be started")

    with monkeypatch.context() as patch:
        patch.setattr(rooms_module, "examine", fail)
        with pytest.raises(ImportStoppedError, match="no process could be started; import it"):
            await store.import_from(str(adapter))
    assert (store.digests(), store.quarantined()) == ([], [])
    assert contents((await store.import_from(str(adapter))).folder) == contents(adapter)
    assert leftovers(root) == []


async def test_an_adapter_that_harms_its_examination_is_refused_and_the_next_is_not(
    tmp_path: Path, adapter: Path
) -> None:
    limits = ExaminationLimits(tensor_bytes=1000)
    store = AdapterStore(tmp_path / "small", limits=limits)
    with pytest.raises(RejectedAdapterError, match=r"found tensors of \d+ bytes as float32"):
        await store.import_from(str(adapter))
    limits = ExaminationLimits(patience=0.0)
    slow = AdapterStore(tmp_path / "small", limits=limits)
    with pytest.raises(RejectedAdapterError, match="found no end of its examination"):
        await slow.import_from(str(adapter))
    assert [entry.error for entry in store.quarantined()] == ["CheckpointFormatError"] * 2
    sound = AdapterStore(tmp_path / "small")
    assert (await sound.import_from(str(adapter))).created
    for opened in (store, slow, sound):
        opened.close()
