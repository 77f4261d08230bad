"""The embedded engine: continuous batching over transformers' models in this process."""

from remix_runtime.engines.embedded.config import EmbeddedConfig
from remix_runtime.engines.embedded.engine import EmbeddedEngine

__all__ = ["EmbeddedConfig", "EmbeddedEngine"]
