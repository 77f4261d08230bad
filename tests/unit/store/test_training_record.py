"""What is no part of the digest and changes all the same: the record of the training."""

from __future__ import annotations

from pathlib import Path

import pytest

from remix_runtime.adapter.checkpoint import TrainingRecord, read_curves
from remix_runtime.adapter.checkpoint.training_file import TRAINING_FILE
from remix_runtime.adapter.checkpoint.writer import put_training
from remix_runtime.errors import CheckpointError, CheckpointFormatError
from server.store import AdapterStore, RejectedAdapterError
from tests.unit.store.conftest import contents, leftovers


def curves(*losses: float) -> TrainingRecord:
    return TrainingRecord(curves={"step": list(range(len(losses))), "loss": list(losses)})


async def test_the_last_import_that_has_a_record_of_the_training_brings_it(
    store: AdapterStore, root: Path, adapter: Path
) -> None:
    stored = await store.import_from(str(adapter))
    assert read_curves(stored.folder) == {}
    for record in (curves(3.0, 2.0), curves(3.0, 2.0, 1.0)):
        put_training(adapter, record)
        again = await store.import_from(str(adapter))
        assert (again.digest, again.created) == (stored.digest, False)
        assert contents(stored.folder) == contents(adapter)
        assert read_curves(stored.folder) == record.curves
    # One that has none takes none away.
    (adapter / TRAINING_FILE).unlink()
    await store.import_from(str(adapter))
    assert read_curves(stored.folder) == record.curves
    assert (store.quarantined(), leftovers(root)) == ([], [])


async def test_a_wrong_record_of_the_training_does_not_get_in(
    store: AdapterStore, adapter: Path
) -> None:
    put_training(adapter, curves(1.0))
    stored = await store.import_from(str(adapter))
    before = contents(stored.folder)
    (adapter / TRAINING_FILE).write_text('{"format_version": 1, "curves": 1}')
    with pytest.raises(RejectedAdapterError, match=r"training\.json: curves"):
        await store.import_from(str(adapter))
    assert contents(stored.folder) == before


async def test_who_reads_an_adapter_while_its_record_is_replaced_finds_it_whole(
    store: AdapterStore, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader sees a folder that changes, which is no damage."""
    put_training(adapter, curves(1.0))
    stored = await store.import_from(str(adapter))
    damage = store._damage

    def replaced_meanwhile(folder: Path, is_served: bool) -> CheckpointError | None:
        assert damage(folder, is_served) is None
        put_training(folder, curves(2.0))
        return CheckpointFormatError("training.json: changed while it was read; read it again")

    monkeypatch.setattr(store, "_damage", replaced_meanwhile)
    await store.set_aside(stored.digest)
    assert read_curves(stored.folder) == curves(2.0).curves
    assert store.quarantined() == []
