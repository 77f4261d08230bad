"""Replays an adapter's parity file on the engine, queued and computed in chunks like a request.

A replay needs a place, KV pages and a slot, which running requests may hold. As a job it waits for
them as long as a request would, and other requests' tokens are computed between its chunks.
"""

from __future__ import annotations

from concurrent.futures import Future

import torch
from torch import Tensor

from remix_runtime.adapter.checkpoint import Parity
from remix_runtime.adapter.parity import compare_parity, require_decisive
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.completion import Completion
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.scheduler import Chunk
from remix_runtime.engines.tokenizer import ModelTokenizer

_TENANT = "parity replays"
"""A tenant of their own: a load does not wait behind all that other tenants have queued."""


class Replay(Job):
    """Runs the prompts one after the other, in the same pages.

    `done` gets the result: a `ParityError` for an adapter that computes something else.
    """

    def __init__(self, digest: str, top_k: int, parity: Parity, tokenizer: ModelTokenizer) -> None:
        longest = max(len(prompt.token_ids_T) for prompt in parity.prompts)
        request = GenerationRequest(
            request_id=f"parity {digest}",
            prompt_token_ids=(0,) * longest,
            params=SamplingParams(max_tokens=1),
            digest=digest,
            tenant=_TENANT,
        )
        super().__init__(request, Completion(request, tokenizer, ()))
        self.page_keys = None
        self.digest = digest
        self.done: Future[None] = Future()
        self.done.set_running_or_notify_cancel()  # whoever waits may go, the result still comes
        self._top_k = top_k
        self._parity = parity
        self._index = 0
        self._decisive = 0
        self._routes: list[dict[str, Tensor]] = []
        self._begin_prompt()

    @property
    def num_rows(self) -> int:
        """Those of the longest prompt."""
        return self.max_len

    def set_back(self) -> None:
        """The prompt that is under way begins again."""
        super().set_back()
        self._begin_prompt()

    @property
    def prompt_charge(self) -> int:
        """All prompts: one long one, and many short ones after it, cost what they take."""
        return sum(len(prompt.token_ids_T) for prompt in self._parity.prompts)

    def compute(self, runner: ModelRunner, chunk: Chunk) -> bool:
        """Runs a chunk. Returns whether it was the last one of all prompts. Raises
        `ParityError`."""
        routes: dict[str, Tensor] = {}
        logits_SV = runner.run([chunk], routes)
        self.num_computed += chunk.count
        # Layers that the adapter leaves alone route nothing.
        self._routes.append(
            {
                name: r_Tk[:, : self._top_k].to("cpu", copy=True)
                for name, r_Tk in routes.items()
                if int(r_Tk[0, 0]) >= 0
            }
        )
        if not chunk.samples:
            return False
        found = {name: torch.cat([part[name] for part in self._routes]) for name in self._routes[0]}
        slack = runner.parity_slack
        self._decisive += compare_parity(
            self._parity, self._index, found, logits_SV[0].cpu(), slack=slack
        )
        self._index += 1
        if self._index < len(self._parity.prompts):
            self._begin_prompt()
            return False
        require_decisive(self._parity, self._decisive, slack=slack)
        return True

    def _begin_prompt(self) -> None:
        self.tokens = self._parity.prompts[self._index].token_ids_T.tolist()
        self.num_computed = 0
        self._routes = []
