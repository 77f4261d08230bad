"""The replay of an adapter's parity file, queued like a request.

It needs a place, KV pages and a slot, which running requests may hold; as a sequence it waits for
them as long as a request would, and no longer.
"""

from __future__ import annotations

from concurrent.futures import Future

from remix_runtime.checkpoint import Parity
from remix_runtime.contracts import GenerationRequest, SamplingParams
from remix_runtime.engines.embedded.runner import ModelRunner
from remix_runtime.engines.embedded.sequence import Sequence
from remix_runtime.parity import replay_parity
from remix_runtime.text import TextStream

_TENANT = "parity replays"
"""With a turn of their own: a load does not wait behind all that other tenants have queued."""


class Replay(Sequence):
    """`done` gets the result, a `ParityError` for an adapter that computes something else."""

    def __init__(self, digest: str, top_k: int, parity: Parity, done: Future[None]) -> None:
        longest = max(len(prompt.token_ids_T) for prompt in parity.prompts)
        request = GenerationRequest(
            request_id=f"parity {digest}",
            prompt_token_ids=(0,) * longest,
            params=SamplingParams(max_tokens=1),
            adapter=digest,
            tenant=_TENANT,
        )
        super().__init__(request, TextStream(lambda _: "", ()))
        self.done = done
        self._top_k = top_k
        self._parity = parity

    def run(self, runner: ModelRunner) -> None:
        """All prompts, one after the other, in the pages and the slot that it holds."""
        prompts = runner.prompt_runner(self.slot, self._top_k, self.pages)
        replay_parity(self._parity, prompts, slack=runner.parity_slack)
