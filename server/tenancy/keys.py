"""API keys: `rk-<8 hex digits>-<43 characters>`.

The first part finds the row and may be shown; the rest is 256 random bits, so one sha256 of the
whole key is all that needs to be stored: there is nothing that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_KEY = re.compile(r"(rk-[0-9a-f]{8})-[A-Za-z0-9_-]{43}")


def new_secret() -> str:
    return f"rk-{secrets.token_hex(4)}-{secrets.token_urlsafe(32)}"


def prefix_of(secret: str) -> str | None:
    """The part that a key is found by; None if the text cannot be a key."""
    match = _KEY.fullmatch(secret)
    return match and match[1]


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def matches(secret: str, stored_hash: str) -> bool:
    """Compares a key with a stored hash, in the same time wherever they differ."""
    return hmac.compare_digest(hash_of(secret), stored_hash)
