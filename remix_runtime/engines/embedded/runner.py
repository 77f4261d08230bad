"""Device work of the embedded engine: one forward pass over the packed tokens of a step.

Shape suffixes: T tokens of the step, S tokens whose logits are wanted, V vocabulary,
H query heads, G key-value heads, d head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from remix_runtime.adapter.checkpoint.types import BaseShapes
from remix_runtime.contracts import ModelInfo
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.embedded.step import Step, computing
from remix_runtime.engines.tokenizer import ModelTokenizer
from remix_runtime.kernels import Batch
from remix_runtime.kernels.attention import PAGE_TOKENS, AttentionBatch, PagedKV
from remix_runtime.kernels.network import NativeNetwork


class ModelRunner:
    """A model whose linears and attention are the engine's own; see `startup.build_core`."""

    page_tokens = PAGE_TOKENS

    def __init__(
        self,
        network: nn.Module,
        native: NativeNetwork | None,
        *,
        model: ModelInfo,
        tokenizer: ModelTokenizer,
        kv: PagedKV,
        num_pages: int,
        base_shapes: BaseShapes,
        device: torch.device,
        parity_slack: float,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.num_pages = num_pages
        self.base_shapes = base_shapes
        self._network = network
        self._native = native
        self._kv = kv
        self._device = device
        self.parity_slack = parity_slack

    @property
    def is_native(self) -> bool:
        """Whether a token's logits have the same bits in every batch and chunk."""
        return self._kv.is_native

    def run(self, chunks: Sequence[Chunk], routes: dict[str, Tensor] | None = None) -> Tensor:
        """Logits [S, V] of the tokens that the chunks want them of, in their order: the newest ones
        of jobs, those proposed behind them, and those before a prompt token that is to be scored.

        Tokens of one adapter must be side by side. `routes`: see `Step`.
        """
        ids: list[int] = []
        positions: list[int] = []
        first_rows: list[int] = []
        num_rows: list[int] = []
        wanted_rows: list[int] = []
        runs: list[tuple[int, int, int]] = []
        for chunk in chunks:
            job, row, token_ids = chunk.job, len(ids), chunk.token_ids
            first_rows.append(row)
            num_rows.append(len(token_ids))
            ids += token_ids
            positions += range(chunk.start, chunk.start + len(token_ids))
            wanted_rows += range(len(ids) - chunk.num_logits, len(ids))
            if runs and runs[-1][2] == job.slot:
                row = runs.pop()[0]
            runs.append((row, len(ids), job.slot))
        step = Step(
            attention=AttentionBatch(
                first_rows,
                num_rows,
                [chunk.start for chunk in chunks],
                [chunk.job.pages for chunk in chunks],
            ),
            kv=self._kv,
            mixture=Batch(runs, counted=routes is None),  # routes are a replay's, no request's
            routes=routes,
        )
        if self._native is not None and routes is None:
            return self._native(ids, positions, wanted_rows, step.attention, step.mixture)
        with torch.inference_mode(), computing(step):
            output = self._network(
                input_ids=torch.tensor([ids], device=self._device),
                position_ids=torch.tensor([positions], device=self._device),
                use_cache=False,
                logits_to_keep=torch.tensor(wanted_rows, device=self._device, dtype=torch.long),
            )
            step.mixture.count()
            logits_SV: Tensor = output.logits[0].float()
        return logits_SV
