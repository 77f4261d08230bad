"""A folder behind an fsspec URL: an object store, or as in `web.py` a web server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import fsspec

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from server.store.errors import SourceError
from server.store.sources.base import Readable, SourceFile, reading

BLOCK_BYTES = 8 << 20
"""Bytes that one request to an object store asks for."""

_EXTRAS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}

# What the file systems call the two kinds of marks. Only the first kind proves equal bytes.
_STRONG = ("ETag", "etag", "generation", "VersionId", "version_id", "md5Hash")
_WEAK = ("Last-Modified", "LastModified", "last_modified", "modified", "created", "mtime")


class RemoteSource:
    """Asks for the allowed names one by one and lists nothing: what else is there never matters."""

    def __init__(self, protocol: str, url: str, **options: Any) -> None:
        self.address = url
        try:
            # A cached instance would remember what the files were at the last import.
            self._fs = fsspec.filesystem(protocol, skip_instance_cache=True, **options)
        except ImportError:
            package = _EXTRAS.get(protocol, protocol)
            raise SourceError(
                f"{protocol}:// needs the package {package}, which is not installed"
            ) from None
        self._root = self._fs._strip_protocol(url).rstrip("/")

    def files(self) -> list[SourceFile]:
        self._fs.invalidate_cache()
        found = []
        for name in MAX_BYTES:
            try:
                with self._reading():
                    info = self._info(f"{self._root}/{name}")
            except SourceError as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue
                raise
            found.append(self._describe(name, info))
        return found

    @contextmanager
    def open(self, file: SourceFile, offset: int) -> Iterator[Readable]:
        path = f"{self._root}/{file.name}"
        with (
            self._reading(),
            self._fs.open(path, "rb", block_size=BLOCK_BYTES, cache_type="none") as stream,
        ):
            stream.seek(offset)
            yield stream

    def _reading(self) -> AbstractContextManager[None]:
        return reading(self.address)

    def _info(self, path: str) -> Mapping[str, object]:
        return cast(Mapping[str, object], self._fs.info(path))

    def _describe(self, name: str, info: Mapping[str, object]) -> SourceFile:
        size = info.get("size")
        if info.get("type") != "file" or info.get("islink") or not isinstance(size, int):
            raise SourceError(
                f"{self.address}: {name}: found no plain file of a known size, expected one"
            )
        marks = {key: info[key] for key in (*_STRONG, *_WEAK) if info.get(key)}
        strong = [str(marks[key]) for key in _STRONG if key in marks]
        return SourceFile(
            name=name,
            size=size,
            version=repr(sorted((key, str(value)) for key, value in marks.items())),
            resumable=any(not mark.startswith("W/") for mark in strong),
        )
