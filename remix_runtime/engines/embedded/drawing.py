"""The tokens that one job gets in one step: one, and one more for each proposal that came true."""

from __future__ import annotations

from dataclasses import dataclass

from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.sampler import Sample


@dataclass(slots=True)
class Draw:
    """A job whose newest token was computed, and proposals behind it.

    Tokens are drawn and taken one by one, as if each had a step of its own: the next row holds only
    if the token that was drawn is the one that was proposed.
    """

    job: Job
    row: int
    """Where the logits are that the next token is drawn from."""
    proposed: tuple[int, ...]
    num_taken: int = 0
    num_accepted: int = 0
    """Proposals that were drawn."""
    error: Exception | None = None
    """What ends the request after the tokens that were taken."""

    def take(self, result: Sample | Exception) -> bool:
        """Gives the job what was drawn. Returns whether there is a row to draw the next one
        from."""
        if isinstance(result, Exception):
            self.error = result
            return False
        self.job.append(result.token_id)
        try:
            goes_on = self.job.completion.push(result.token_id, result.logprobs)
        except Exception as error:
            self.error = error
            return False
        self.num_taken += 1
        if self.proposed[self.num_accepted : self.num_accepted + 1] != (result.token_id,):
            return False
        self.num_accepted += 1
        self.job.num_computed += 1
        self.row += 1
        return goes_on
