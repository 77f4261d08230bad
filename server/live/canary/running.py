"""The canaries that run on this server: which requests are theirs, and what came of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import monotonic

from server.live.adapters import LiveAdapters
from server.live.canary.figures import Arm, Figures
from server.tenancy.canary_rows import Canary


@dataclass(eq=False, slots=True)
class Trial:
    """One request for the name while there is a canary. It counts once, when it ends; while it
    waits for its first token, its wait so far is seen."""

    canary: RunningCanary
    arm: Arm
    began: float = field(default_factory=monotonic)
    first: float | None = None
    """When the first token came, and the last one, on the monotonic clock."""
    last: float | None = None
    tokens: int = 0
    is_over: bool = False
    """Whether it was counted, or never will be."""

    def see(self, tokens: int) -> None:
        """Tokens came just now."""
        if tokens:
            self.last = monotonic()
            if self.first is None:
                self.first = self.last
                self.canary.waiting.discard(self)
        self.tokens += tokens

    def begin_again(self) -> None:
        """What the canary did of the request is over: the live adapter answers it. The wait for
        that is no time of the canary."""
        self.first = self.last = None
        self.tokens = 0
        self.canary.waiting.discard(self)

    def end(self, *, failed: bool) -> None:
        """The request was answered, or failed by the arm's fault."""
        figures = self.canary.seen.of(self.arm)
        figures.requests += 1
        figures.failures += failed
        if not failed:
            self._count_times()
        self.leave()

    def abandon(self) -> None:
        """The client went away. Nobody failed, but how long it had waited is known."""
        if self.first is None:
            self.canary.seen.of(self.arm).first.add(monotonic() - self.began)
        else:
            self.last = monotonic()
            self._count_times()
        self.leave()

    def leave(self) -> None:
        """It tells nothing of the arm: a mistake of the client, or a full queue."""
        self.is_over = True
        self.canary.waiting.discard(self)

    def _count_times(self) -> None:
        if self.first is None or self.last is None:
            return
        figures = self.canary.seen.of(self.arm)
        figures.first.add(self.first - self.began)
        if self.tokens > 1:
            figures.token.add((self.last - self.first) / (self.tokens - 1))


class RunningCanary:
    """One canary on this server."""

    def __init__(self, record: Canary) -> None:
        self.record = record
        self.seen = Figures()
        """By this process."""
        self.others = Figures()
        """By other servers, and by this one before it was started again, as last read."""
        self.waiting: set[Trial] = set()
        """Requests without a token so far."""
        self.stopped: str | None = None
        """Why it is to be rolled back: no request is its any more, whatever the database says and
        whatever is seen of those that it still has."""
        self.fault: str | None = None
        """Why it cannot be served here at all."""

    @property
    def figures(self) -> Figures:
        """All that is known, waits that go on included as if they ended now."""
        return self.seen + self.others + self._waits()

    def begin(self, key: str) -> Trial:
        """The trial of a request. Requests with the same key are on the same side."""
        digest = hashlib.blake2b(f"{self.record.id}/{key}".encode(), digest_size=8).digest()
        drawn = int.from_bytes(digest, "big") / 2**64
        trial = Trial(self, Arm.CANARY if drawn < self.record.share else Arm.LIVE)
        self.waiting.add(trial)
        return trial

    def _waits(self) -> Figures:
        """Only those that are longer than most: a short wait says nothing of how long it gets."""
        waits, now = Figures(), monotonic()
        for arm, figures in (self.seen + self.others).arms():
            usual = figures.first.quantile(0.5) or 0.0
            for trial in self.waiting:
                if trial.arm is arm and (wait := now - trial.began) > max(usual, 1.0):
                    waits.of(arm).first.add(wait)
        return waits


class RunningCanaries:
    """All of this server. Each pins its adapter while it runs."""

    def __init__(self, adapters: LiveAdapters) -> None:
        self._adapters = adapters
        self._running: dict[tuple[str, str], RunningCanary] = {}

    def follow(self, wanted: Iterable[Canary]) -> None:
        """Makes these the canaries that run. One moment: requests before keep what they have."""
        records = {(canary.tenant, canary.name): canary for canary in wanted}
        for key, running in list(self._running.items()):
            record = records.get(key)
            if record is None or record.id != running.record.id:
                del self._running[key]
                self._adapters.unpin(running.record.digest)
        for key, record in records.items():
            if key not in self._running:
                self._adapters.pin(record.digest)
                self._running[key] = RunningCanary(record)

    def find(self, tenant: str, name: str) -> RunningCanary | None:
        """The canary that shares the requests for a name at this moment: one whose adapter the
        engine has."""
        found = self._running.get((tenant, name)) if self._running else None
        if found is None or found.stopped is not None or not self.is_loaded(found):
            return None
        return found

    def of(self, record: Canary) -> RunningCanary | None:
        """What this server has of a canary."""
        found = self._running.get((record.tenant, record.name))
        return found if found is not None and found.record.id == record.id else None

    def is_loaded(self, canary: RunningCanary) -> bool:
        return self._adapters.loaded([canary.record.digest])

    @property
    def all(self) -> list[RunningCanary]:
        return list(self._running.values())
