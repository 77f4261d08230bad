"""The adapter folder: read, validated, written, identified."""

from remix_runtime.adapter.checkpoint.defaults import read_defaults
from remix_runtime.adapter.checkpoint.describe import Description, describe
from remix_runtime.adapter.checkpoint.parity_file import Parity, ParityPrompt, read_parity
from remix_runtime.adapter.checkpoint.reader import adapter_digest, read_adapter, read_checkpoint
from remix_runtime.adapter.checkpoint.training_file import Curves, TrainingRecord, read_curves
from remix_runtime.adapter.checkpoint.types import (
    DEFAULT_LIMITS,
    AdapterConfig,
    BaseShapes,
    Checkpoint,
    CheckpointLimits,
    LayerWeights,
    LoraConfig,
    Mixture,
    Scaling,
    routing_weight,
)
from remix_runtime.adapter.checkpoint.writer import sync_folder, tidy_place, write_checkpoint

__all__ = [
    "DEFAULT_LIMITS",
    "AdapterConfig",
    "BaseShapes",
    "Checkpoint",
    "CheckpointLimits",
    "Curves",
    "Description",
    "LayerWeights",
    "LoraConfig",
    "Mixture",
    "Parity",
    "ParityPrompt",
    "Scaling",
    "TrainingRecord",
    "adapter_digest",
    "describe",
    "read_adapter",
    "read_checkpoint",
    "read_curves",
    "read_defaults",
    "read_parity",
    "routing_weight",
    "sync_folder",
    "tidy_place",
    "write_checkpoint",
]
