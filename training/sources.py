"""Where rows come from: JSON, or what the `datasets` library reads.

JSONL and JSON arrays have readers of their own (`jsonl.py`): errors name the line or the place, and
a JSONL file of any size is open in seconds, without a copy. Parquet, CSV, Arrow, packed files,
folders of them and data sets of the hub are read by `datasets`, which keeps them in its cache as
Arrow files that are mapped, not loaded.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from remix_runtime.base.folder import one_line
from remix_runtime.errors import ConfigError, DataError
from remix_runtime.extras import require_extra
from training.jsonl import JsonList, JsonRows
from training.progress import Move

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_BUILDERS = ("arrow", "csv", "json", "parquet", "text")
"""Formats that hold text and no code: others of the library's unpickle, or decode images."""
_FORMATS = {
    ".arrow": "arrow",
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".tsv": "csv",
    ".txt": "text",
}
_PACKED = (".bz2", ".gz", ".xz", ".zip", ".zst")
_BATCH = 4096
"""Rows that are hashed at a time."""


class RowSource(Protocol):
    """Rows by their index. `digest` is of their content."""

    path: Path
    digest: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    def where(self, index: int) -> str:
        """What a row is called in errors."""

    def require_unchanged(self) -> None:
        """Raises `DataError` if the rows are not those that were opened."""


def open_rows(
    name: Path,
    *,
    split: str | None = None,
    subset: str | None = None,
    move: Move = lambda _: None,
) -> RowSource:
    """Opens a file, a folder, or a data set of the hub. `split` is `train` where there are splits,
    `subset` one of the hub's configurations of a data set. Raises `DataError`, `ConfigError`."""
    if _is_json(name):
        for setting, value in (("split", split), ("subset", subset)):
            if value is not None:
                raise ConfigError(f"{setting}: found {value!r} with {name}, which has none")
        return JsonList(name) if _is_list(name) else JsonRows(name, move=move)
    return DatasetRows(name, split=split or "train", subset=subset, move=move)


def placed(folder: Path, name: Path) -> Path:
    """A source that a file in `folder` names: relative to it, unless it is a name of the hub."""
    return name if is_hub_name(name) and not (folder / name).exists() else folder / name


def is_hub_name(name: Path) -> bool:
    """Whether a name may be a data set's on the hub: an owner's and a set's, no file's."""
    parts = (name, *name.parents)
    return _HUB_NAME.fullmatch(str(name)) is not None and not any(map(_format_of, parts))


class DatasetRows:
    """The rows of a data set as the `datasets` library reads it."""

    def __init__(
        self, name: Path, *, split: str, subset: str | None, move: Move = lambda _: None
    ) -> None:
        """Raises `DataError` in one line for what cannot be read."""
        require_extra("this kind of data", "train", "datasets")
        self.path = name
        self._split = split
        with _quiet():
            self._rows = _load(name, split, subset)
        if not len(self._rows):
            raise DataError(f"{name}: found no rows in {split}, expected at least one")
        self.digest = self._hashed(move)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self._rows.features
        return {key: _kept(value, features[key]) for key, value in self._rows[index].items()}

    def where(self, index: int) -> str:
        return f"{self.path}: {self._split}[{index}]"

    def require_unchanged(self) -> None:
        """They were copied when they were opened."""

    def _hashed(self, move: Move) -> str:
        digest, done = sha256(), 0
        for table in self._rows.with_format("arrow").iter(_BATCH):
            for batch in table.combine_chunks().to_batches():
                digest.update(batch.serialize())
            done += len(table)
            move(done / len(self._rows))
        return digest.hexdigest()


def _load(name: Path, split: str, subset: str | None) -> Any:
    import datasets

    if (name / "state.json").is_file():
        return _of_disk(name, split)
    asked = _asked(name)
    try:
        builder = datasets.load_dataset_builder(asked, name=subset, **_files(name))
        kind = type(builder).__module__.rpartition(".")[2]
        if kind not in _BUILDERS:
            raise DataError(
                f"{name}: found data of the kind {kind}, expected one of {', '.join(_BUILDERS)}"
            )
        builder.download_and_prepare()
        return builder.as_dataset(split=split)
    except DataError:
        raise
    except Exception as error:  # which depends on the format, and on what is wrong
        raise DataError(f"{name}: cannot be read: {one_line(_cause(error))}") from None


def _kept(value: Any, feature: Any) -> Any:
    """A value without the keys that are null in its objects: Arrow gives an object the keys of all
    others in its column. Columns of the library's type for JSON are as they were written."""
    if isinstance(feature, dict) and isinstance(value, dict):
        return {key: _kept(item, feature[key]) for key, item in value.items() if item is not None}
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [_kept(item, feature.feature) for item in value]
    return value


def _of_disk(name: Path, split: str) -> Any:
    """A folder that `save_to_disk` wrote has no splits."""
    import datasets

    if split != "train":
        raise ConfigError(f"split: found {split!r} with {name}, which has none")
    try:
        return datasets.load_from_disk(str(name))
    except Exception as error:  # as above
        raise DataError(f"{name}: cannot be read: {one_line(_cause(error))}") from None


def _asked(name: Path) -> str:
    """What the library is asked for: a format, a folder, or a name on the hub."""
    if name.is_file():
        found = _format_of(name)
        if found is None:
            kinds = ", ".join(_FORMATS)
            raise DataError(f"{name}: found {name.suffix or 'no suffix'}, expected one of {kinds}")
        return found
    if not name.exists() and not is_hub_name(name):
        raise DataError(f"{name}: cannot be read: no such file or folder")
    return str(name)


def _files(name: Path) -> dict[str, Any]:
    """What the library is told of a single file."""
    if not name.is_file():
        return {}
    settings: dict[str, Any] = {"data_files": {"train": str(name)}}
    if _format_of(name) == "csv":
        import pandas as pd
        from datasets import Features, Value

        # All of it is text, "4" and "NA" too.
        settings |= {"keep_default_na": False, "sep": "\t" if ".tsv" in name.suffixes else ","}
        columns = pd.read_csv(name, nrows=0, sep=settings["sep"]).columns
        settings["features"] = Features({column: Value("string") for column in columns})
    return settings


def _is_json(name: Path) -> bool:
    """A file that is nothing else by its name."""
    if name.is_dir() or (is_hub_name(name) and not name.exists()):
        return False
    return _format_of(name) in (None, "json") and name.suffix not in _PACKED


def _is_list(name: Path) -> bool:
    """Whether a `.json` file begins as an array."""
    if name.suffix != ".json" or not name.is_file():
        return False
    with name.open("rb") as file:
        return file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def _format_of(name: Path) -> str | None:
    suffixes = [suffix for suffix in name.suffixes if suffix not in _PACKED]
    return _FORMATS.get(suffixes[-1]) if suffixes else None


def _cause(error: BaseException) -> BaseException:
    """The innermost one: the library's own errors say only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's own bars: the run has one."""
    import datasets

    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()
