"""A model repository of the Hugging Face hub, read at one commit.

Endpoint and token are those of `huggingface_hub`: `HF_ENDPOINT`, `HF_TOKEN`, `hf auth login`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, HfFileSystem
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from server.store.errors import SourceError, SourceMissingError
from server.store.sources.base import Readable, SourceFile, reading, without_content
from server.store.sources.remote import BLOCK_BYTES


class HubSource:
    """A branch or tag is resolved to its commit once; only that commit is read and written down."""

    def __init__(self, repository: str, revision: str | None) -> None:
        name = f"hf://{repository}" + (f"@{revision}" if revision else "")
        with reading(name):
            try:
                info = HfApi().model_info(repository, revision=revision, files_metadata=True)
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                raise SourceMissingError(f"{name}: {without_content(error)}") from error
        if info.sha is None:
            raise SourceError(f"{name}: the hub names no commit")
        self.address = f"hf://{repository}@{info.sha}"
        self._path = f"{repository}@{info.sha}"
        self._fs = HfFileSystem(skip_instance_cache=True)
        found = {sibling.rfilename: sibling for sibling in info.siblings or []}
        self._files = []
        for name in MAX_BYTES:
            if (sibling := found.get(name)) is None:
                continue
            if sibling.size is None or sibling.blob_id is None:
                raise SourceError(f"{self.address}: {name}: the hub does not say how large it is")
            if sibling.lfs is not None:
                checksum = ("sha256", sibling.lfs.sha256)
            else:
                checksum = ("git-blob", sibling.blob_id)
            self._files.append(
                SourceFile(
                    name=name,
                    size=sibling.size,
                    version=checksum[1],
                    resumable=True,
                    checksum=checksum,
                )
            )

    def files(self) -> list[SourceFile]:
        return list(self._files)  # a commit does not change

    @contextmanager
    def open(self, file: SourceFile, offset: int) -> Iterator[Readable]:
        with (
            reading(self.address),
            self._fs.open(
                f"{self._path}/{file.name}",
                "rb",
                block_size=BLOCK_BYTES,
                cache_type="none",
                size=file.size,
            ) as stream,
        ):
            stream.seek(offset)
            yield stream
