"""The shape of an adapter, and where it is. Imports nothing but the error tree, so any benchmark
can."""

from __future__ import annotations

from dataclasses import dataclass

from remix_runtime.errors import ConfigError

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def in_upper_blocks(blocks: int, upper: int | None) -> list[str]:
    """The feed-forward linears of the last `upper` of so many blocks, or of all of them."""
    last = range(blocks - (upper or blocks), blocks)
    return [f"layers.{block}.mlp.{name}" for block in last for name in FEED_FORWARD]


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """n experts of rank r, of which a token activates k."""

    n: int
    k: int
    r: int

    @classmethod
    def parse(cls, text: str) -> AdapterShape:
        """From "n,k,r". Raises `ConfigError`."""
        try:
            n, k, r = (int(part) for part in text.split(","))
        except ValueError:
            raise ConfigError(
                f"adapter shape: found {text!r}, expected n,k,r as in 8,4,8"
            ) from None
        if not (1 <= k <= n and r >= 1):
            raise ConfigError(f"adapter shape: found {text!r}, expected 1 <= k <= n and r >= 1")
        return cls(n, k, r)

    def __str__(self) -> str:
        return f"n{self.n} k{self.k} r{self.r}"
