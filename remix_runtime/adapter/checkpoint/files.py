"""Which files an adapter folder has: what is copied, sent or fetched of an adapter is these."""

from __future__ import annotations

from collections.abc import Mapping

from remix_runtime.adapter.checkpoint.defaults import DEFAULTS_FILE
from remix_runtime.adapter.checkpoint.defaults import MAX_BYTES as MAX_DEFAULTS_BYTES
from remix_runtime.adapter.checkpoint.fields import CONFIG_FILE
from remix_runtime.adapter.checkpoint.parity_file import PARITY_FILE
from remix_runtime.adapter.checkpoint.reader import TENSOR_FILE
from remix_runtime.adapter.checkpoint.training_file import MAX_BYTES as MAX_TRAINING_BYTES
from remix_runtime.adapter.checkpoint.training_file import TRAINING_FILE
from remix_runtime.adapter.checkpoint.types import DEFAULT_LIMITS
from remix_runtime.adapter.checkpoint.writer import README_FILE

MAX_BYTES: Mapping[str, int] = {
    CONFIG_FILE: DEFAULT_LIMITS.config_bytes,
    DEFAULTS_FILE: MAX_DEFAULTS_BYTES,
    README_FILE: 4 << 20,
    TRAINING_FILE: MAX_TRAINING_BYTES,
    PARITY_FILE: DEFAULT_LIMITS.parity_bytes,
    TENSOR_FILE: DEFAULT_LIMITS.header_bytes + DEFAULT_LIMITS.tensor_bytes,
}
"""The names of all of them, small ones first, and how large each may be."""
