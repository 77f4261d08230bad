"""Adapters on disk by digest: imported, verified, found, collected."""

from server.store.errors import (
    ImportStoppedError,
    RejectedAdapterError,
    SourceError,
    SourceMissingError,
    SourceTooSlowError,
    SourceUnavailableError,
    StoreError,
    StoreFullError,
    UnknownDigestError,
)
from server.store.quarantine import Quarantined
from server.store.sources import FetchPolicy
from server.store.store import DOWNLOADING_BYTES, AdapterStore, Progress, StoredAdapter

__all__ = [
    "DOWNLOADING_BYTES",
    "AdapterStore",
    "FetchPolicy",
    "ImportStoppedError",
    "Progress",
    "Quarantined",
    "RejectedAdapterError",
    "SourceError",
    "SourceMissingError",
    "SourceTooSlowError",
    "SourceUnavailableError",
    "StoreError",
    "StoreFullError",
    "StoredAdapter",
    "UnknownDigestError",
]
