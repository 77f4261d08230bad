"""What an engine tells of an adapter that it has loaded."""

from __future__ import annotations

from remix_runtime.checkpoint import Checkpoint
from remix_runtime.contracts import AdapterInfo


def adapter_info(checkpoint: Checkpoint) -> AdapterInfo:
    return AdapterInfo(
        digest=checkpoint.digest,
        num_layers=len(checkpoint.layers),
        num_experts=checkpoint.config.num_experts,
        top_k=checkpoint.config.top_k,
        r=checkpoint.config.r,
        num_bytes=checkpoint.num_bytes,
    )
