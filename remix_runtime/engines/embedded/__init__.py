"""The embedded engine: continuous batching over transformers' models in this process.

Its settings are light; PyTorch is imported with the engine, when it is first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remix_runtime.engines.embedded.config import EmbeddedConfig

if TYPE_CHECKING:
    from remix_runtime.engines.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedConfig", "EmbeddedEngine"]


def __getattr__(name: str) -> type[EmbeddedEngine]:
    if name == "EmbeddedEngine":
        from remix_runtime.engines.embedded.engine import EmbeddedEngine

        return EmbeddedEngine
    raise AttributeError(name)
