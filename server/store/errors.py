"""Every way an import or a look-up can fail.

StoreError
├── SourceError             this source is not read: its address, its files, their sizes
│   └── SourceMissingError      there is no adapter
├── SourceUnavailableError  it could not be read now; importing it again continues
│   ├── ImportStoppedError      nobody wants it any more, or this machine cannot
│   └── SourceTooSlowError      it brought too little, or took too long
├── RejectedAdapterError    what came is no valid adapter; it lies in quarantine
├── StoreFullError          there is no room on the disk
└── UnknownDigestError      no adapter of this digest is in the store
"""

from __future__ import annotations

from remix_runtime.errors import RemixError


class StoreError(RemixError):
    """Root of the store's errors."""


class SourceError(StoreError):
    """The source is not one that is read, or holds what is refused: trying again will not help."""


class SourceMissingError(SourceError):
    """There is no adapter at the source: no such folder or repository, or not all of its files."""


class SourceUnavailableError(StoreError):
    """The source could not be read to its end. What came is kept where it can be continued."""


class ImportStoppedError(SourceUnavailableError):
    """Whoever asked for the import went away, the store was closed, or what came could not be
    examined now."""


class SourceTooSlowError(SourceUnavailableError):
    """The source brought less than the least rate, or took longer than an import may."""


class RejectedAdapterError(StoreError):
    """What came from the source is no valid adapter. `quarantine_id` names where it lies."""

    def __init__(self, message: str, *, quarantine_id: str) -> None:
        super().__init__(message)
        self.quarantine_id = quarantine_id


class StoreFullError(StoreError):
    """There is no room for the adapter on the disk of the store."""


class UnknownDigestError(StoreError):
    """No adapter of this digest is in the store."""
