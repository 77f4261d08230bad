"""What the directory takes and gives, and what a well-formed value is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from server.tenancy.errors import InvalidValueError

MAX_TEXT = 2048
MAX_LIMIT = 10**12
MAX_ADAPTERS = 1000
"""The most adapters of one set."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
DIGEST_PATTERN = r"^[0-9a-f]{64}$"
_NAME = re.compile(NAME_PATTERN)
_DIGEST = re.compile(DIGEST_PATTERN)


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    id: str
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key at the only moment when its secret is known."""

    id: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyInfo:
    id: str
    tenant: str
    prefix: str
    """The beginning of the secret, enough to recognise a key by."""
    created: datetime
    revoked: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """What a tenant may use. None is no limit; a tenant starts with this class's defaults."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    may_use_base: bool = False

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "max_concurrent"):
            limit = getattr(self, name)
            if limit is not None and not 1 <= limit <= MAX_LIMIT:
                raise InvalidValueError(name, limit, f"a number from 1 to {MAX_LIMIT}, or none")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterRecord:
    """An imported adapter."""

    digest: str
    source: str
    """Where it was imported from."""
    num_bytes: int
    created: datetime = field(default_factory=now)
    description: Mapping[str, Any] = field(default_factory=dict)
    """What the adapter is, as `remix check` says it."""

    def __post_init__(self) -> None:
        check_digest("digest", self.digest)
        check_text("source", self.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRevision:
    """One state of a tenant's adapter set. Revision 0 is the empty set before the first."""

    tenant: str
    revision: int
    adapters: Mapping[str, str]
    """Names to digests."""
    created: datetime
    actor: str
    rolled_back_from: int | None
    """The older revision that a rollback took these adapters from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One change. Ids grow in the order in which the changes took effect."""

    id: int
    at: datetime
    actor: str
    action: str
    tenant: str | None
    detail: Mapping[str, Any]


def check_name(field_name: str, name: str) -> None:
    """Checks a tenant's name, or an adapter's name in a set."""
    if not _NAME.fullmatch(name):
        expected = (
            "up to 64 letters, digits, dots, dashes or underscores, the first a letter or digit"
        )
        raise InvalidValueError(field_name, name, expected)


def check_digest(field_name: str, digest: str) -> None:
    if not _DIGEST.fullmatch(digest):
        raise InvalidValueError(field_name, digest, "a sha256 as 64 lower-case hex digits")


def check_text(field_name: str, text: str) -> None:
    """Checks for printable text: databases differ in how they store NUL characters and lone
    surrogates."""
    if not (0 < len(text) <= MAX_TEXT and text.isprintable()):
        raise InvalidValueError(field_name, text, f"1 to {MAX_TEXT} printable characters")


def check_adapters(adapters: Mapping[str, str]) -> None:
    if len(adapters) > MAX_ADAPTERS:
        raise InvalidValueError("adapters", f"{len(adapters)} adapters", f"at most {MAX_ADAPTERS}")
    for name, digest in adapters.items():
        check_name("adapters", name)
        check_digest(f"adapters.{name}", digest)
