"""What a key that an operator chooses must be like: headers can carry it, nobody guesses it."""

from __future__ import annotations

MIN_CHARACTERS = 4

USABLE_KEY = (
    f"at least {MIN_CHARACTERS} characters, printable ASCII only, without a blank at either end"
)


def is_usable_key(key: str) -> bool:
    # Blanks around a header's value are not part of it: such a key would never be accepted.
    return len(key) >= MIN_CHARACTERS and key.isascii() and key.isprintable() and key.strip() == key
