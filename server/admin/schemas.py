"""What the admin API takes, and what it gives beside the directory's records, which are answers
themselves. Requests are strict: no unknown fields, no conversions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from remix_runtime.engine_state import AdapterTier
from server.store import Progress
from server.tenancy.canary_rows import CanaryRules
from server.tenancy.records import (
    DIGEST_PATTERN,
    MAX_ADAPTERS,
    MAX_LIMIT,
    MAX_TEXT,
    NAME_PATTERN,
    AdapterRecord,
    SetRevision,
)

MAX_PAGE = 1000
MAX_REVISIONS = 100
"""Of a page: each may have a thousand adapters."""
MAX_ADAPTER_PAGE = 100

Item = TypeVar("Item")

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Source = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN)]
Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT)]

# Names to digests, which the directory checks.
Adapters = Annotated[
    dict[str, str],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": NAME_PATTERN},
            "additionalProperties": {"type": "string", "pattern": DIGEST_PATTERN},
            "maxProperties": MAX_ADAPTERS,
        }
    ),
]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class CreateTenant(_Request):
    id: Name


class PutSet(_Request):
    adapters: Adapters
    """Names to digests: the whole set."""


class RollBack(_Request):
    revision: Annotated[int, Field(ge=0, lt=1 << 31)]
    """The revision whose adapters become the set again, as a new revision."""


_RULES = CanaryRules()


class _CanaryRules(_Request):
    max_extra_errors: float = _RULES.max_extra_errors
    """The share of its requests that may fail beyond that of the live adapter's."""
    max_first_token_ratio: float = _RULES.max_first_token_ratio
    """How many times as long as with the live adapter the first token may take."""
    max_token_ratio: float = _RULES.max_token_ratio
    """The same for the later tokens."""
    max_first_token_seconds: float | None = None
    """The most that the median first token may take, whatever the live adapter does."""
    max_token_seconds: float | None = None
    """The same for the later tokens."""
    bake_seconds: float = _RULES.bake_seconds
    bake_requests: int = _RULES.bake_requests
    """It is promoted after so long and so many requests within the bounds."""
    give_up_seconds: float = _RULES.give_up_seconds
    """It is rolled back when it has come to no end after so long."""


class PutCanary(_CanaryRules):
    name: Name
    """Of the set: its requests are shared."""
    digest: Digest
    """The adapter that may get the name."""
    share: float = 0.1
    """Of the name's requests, above 0 and at most 1."""


class CanaryState(_CanaryRules):
    """A canary, and what was seen of it and of the live adapter beside it."""

    name: str
    id: str
    digest: str
    share: float
    created: datetime
    actor: str
    state: Literal["running", "promoted", "rolled_back", "superseded"]
    ended: datetime | None
    reason: str
    """Why it ended."""
    waits_for: str
    """What one that runs waits for."""
    figures: dict[str, Any]
    """By arm (`canary`, `live`): requests, failures, and times. Empty before the first."""


class ImportAdapter(_Request):
    source: Source
    """`hf://OWNER/NAME[@REVISION]`, an s3, gs, az or http(s) URL, or a folder under the server's
    import root."""


class LoadLora(BaseModel):
    """vLLM's body; fields of it that mean nothing here are ignored."""

    model_config = ConfigDict(strict=True)

    lora_name: Name
    lora_path: Source
    load_inplace: bool = False
    """Whether a name that is in use may get another adapter."""


class UnloadLora(BaseModel):
    """vLLM's body."""

    model_config = ConfigDict(strict=True)

    lora_name: Name


class Quota(BaseModel):
    """null is no limit. A PUT replaces all of it: what is left out gets its default."""

    model_config = ConfigDict(strict=True, extra="forbid", from_attributes=True)

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    max_concurrent: Limit | None = None
    may_use_base: bool = False


class Listed(BaseModel, Generic[Item]):
    data: list[Item]
    has_more: bool = False
    """Whether there is another page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSet(SetRevision):
    live_revision: int
    """The revision that this server serves. It is behind `revision` while this server loads what
    another one made the tenant's set."""


class Swap(BaseModel):
    """The names that differ, and the revisions before and after. Both are the same revision where
    nothing was written: in a dry run, and where the set already was as wanted."""

    model_config = ConfigDict(from_attributes=True)

    before: SetRevision
    after: SetRevision
    added: list[str]
    changed: list[str]
    """Names that get another digest."""
    removed: list[str]
    dry_run: bool
    seconds: float


class ReplicaState(BaseModel):
    """An adapter that this server's engine holds."""

    tier: AdapterTier
    slot: int | None
    """Its slot; null off the device."""
    pins: int
    """Live sets, running requests and running swaps that use it."""
    requests: int
    """Running and waiting requests in the engine."""
    last_used: datetime | None
    load_seconds: float | None
    """Seconds that making it servable took: reading, checking and replaying it."""
    read_seconds: float
    """Seconds that its last read from disk took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter(AdapterRecord):
    """An imported adapter, who uses it and its state on this server."""

    __pydantic_config__ = ConfigDict(json_schema_serialization_defaults_required=True)

    tenants: list[str]
    """Tenants whose set names it."""
    replica: ReplicaState | None
    """null while this server's engine does not hold it."""


class Training(BaseModel):
    curves: dict[str, list[int | float] | list[list[int | float]]]
    """`step` and values at those steps by name; `held_out_loss` is pairs of a step and a value."""


class AdapterFile(BaseModel):
    name: str
    size: int


class Server(BaseModel):
    """What this server is."""

    version: str
    base: str
    """The name of the base model."""
    base_fingerprint: str | None
    """Of its weights: adapters that were trained on the same base fit it. null where the engine
    does not tell."""
    max_model_len: int


class ImportProgress(BaseModel):
    """A line of an import with progress."""

    progress: Progress


class Imported(BaseModel):
    """The last line of an import with progress that succeeded."""

    adapter: Adapter
    created: bool


class Collected(BaseModel):
    removed: list[str]
    """Digests."""


class Quarantined(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str
    at: datetime
    source: str
    error: str
    reason: str
