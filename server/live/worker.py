"""Work that is too long for a turn of the event loop."""

from __future__ import annotations

from remix_runtime.fairness.worker import FairWorker

MAX_WAITING = 256
"""Bodies and answers that wait or are worked on, in shares of the tenants."""


def make_worker() -> FairWorker:
    """One thread, so that however many pieces come they share one thread's time with the event
    loop. They must be Python that makes no long call of C: such a call holds up all threads."""
    return FairWorker(
        "remix-worker", places=MAX_WAITING, what="bodies and answers wait for their turn"
    )
