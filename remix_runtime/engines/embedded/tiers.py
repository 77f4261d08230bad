"""Requests whose adapter is not in host memory wait here while it is read. Pure Python.

One adapter is read at a time: what reading takes comes on top of the memory budget. Tenants take
turns, so that one with many cold adapters does not keep another's only one waiting. A request
that is ready, waiting for the scheduler or running, keeps its adapter in host memory.
"""

from __future__ import annotations

from typing import Protocol

from remix_runtime.engines.embedded.admission import PATIENCE
from remix_runtime.engines.embedded.job import Job
from remix_runtime.engines.embedded.scheduler import Scheduler


class HostMemory(Protocol):
    """What the tiers need of the adapter bank; see there."""

    def is_ready(self, digest: str) -> bool: ...

    def reserve(self, digest: str) -> bool: ...

    def cancel(self, digest: str) -> None: ...

    def pin(self, digest: str) -> None: ...

    def unpin(self, digest: str) -> None: ...


class ColdRequests:
    """Waiting jobs by the adapter they need, and the tenants' turns."""

    def __init__(self) -> None:
        self._count = 0
        self._jobs: dict[str, dict[Job, None]] = {}
        self._turns: dict[str, dict[str, None]] = {}
        """By tenant, who has waited longest first: the digests it needs, the oldest first."""

    def __len__(self) -> int:
        return self._count

    def __contains__(self, job: Job) -> bool:
        return job in self._jobs.get(_digest(job), ())

    @property
    def digests(self) -> tuple[str, ...]:
        return tuple(self._jobs)

    def add(self, job: Job) -> None:
        digest = _digest(job)
        self._count += 1
        self._jobs.setdefault(digest, {})[job] = None
        self._turns.setdefault(job.request.tenant, {})[digest] = None

    def remove(self, job: Job) -> None:
        digest, tenant = _digest(job), job.request.tenant
        jobs = self._jobs[digest]
        del jobs[job]
        self._count -= 1
        if not any(other.request.tenant == tenant for other in jobs):
            del self._turns[tenant][digest]
            if not self._turns[tenant]:
                del self._turns[tenant]
        if not jobs:
            del self._jobs[digest]

    def next(self) -> str | None:
        """The adapter whose turn it is; the same until `take`."""
        return next((next(iter(digests)) for digests in self._turns.values()), None)

    def take(self, digest: str) -> list[Job]:
        """All that wait for an adapter, in order of arrival. Their tenants go to the end."""
        jobs = list(self._jobs.pop(digest, ()))
        self._count -= len(jobs)
        for tenant in dict.fromkeys(job.request.tenant for job in jobs):
            digests = self._turns.pop(tenant)
            del digests[digest]
            if digests:
                self._turns[tenant] = digests
        return jobs


class Tiers:
    """Hands jobs to the scheduler as soon as their adapter is in host memory.

    When the adapter whose turn it is finds no room because all others are in use, and `PATIENCE`
    requests were admitted since, the door closes: newcomers wait here too, even for adapters that
    are ready, until one of those is unused and makes room.
    """

    def __init__(self, memory: HostMemory, scheduler: Scheduler) -> None:
        self._memory = memory
        self._scheduler = scheduler
        self._cold = ColdRequests()
        self._reading: str | None = None
        self._blocked_since: int | None = None

    @property
    def num_cold(self) -> int:
        return len(self._cold)

    def add(self, job: Job) -> None:
        digest = job.request.digest
        if digest is None:
            self._scheduler.add(job)
        elif self._memory.is_ready(digest) and not self._is_closed:
            self._memory.pin(digest)
            self._scheduler.add(job)
        else:
            self._cold.add(job)

    def finish(self, job: Job) -> None:
        """Takes a job out, wherever it is, and frees all that it holds."""
        digest = job.request.digest
        if digest is not None and job in self._cold:
            self._cold.remove(job)
            return
        self._scheduler.finish(job)
        if digest is not None:
            self._memory.unpin(digest)

    def next_read(self) -> str | None:
        """The adapter that has to be read now; its memory is set aside until `read` or `failed`.
        None while one is being read, or none is needed, or there is no room."""
        if not self._is_closed:
            self._let_in()
        digest = self._cold.next()
        if self._reading is not None or digest is None:
            return None
        if not self._memory.is_ready(digest):
            if not self._memory.reserve(digest):
                if self._blocked_since is None:
                    self._blocked_since = self._scheduler.num_admitted
                return None
            self._reading = digest
        self._blocked_since = None
        self._let_in()
        return self._reading

    def read(self, digest: str) -> None:
        """The copy has come, or its adapter was removed meanwhile."""
        assert digest == self._reading
        self._reading = None
        self._let_in()

    def failed(self, digest: str) -> list[Job]:
        """The copy does not come: the jobs that waited for it, taken out."""
        assert digest == self._reading
        self._reading = None
        self._memory.cancel(digest)
        return self._cold.take(digest)

    @property
    def _is_closed(self) -> bool:
        since = self._blocked_since
        return since is not None and self._scheduler.num_admitted - since >= PATIENCE

    def _let_in(self) -> None:
        for digest in self._cold.digests:
            if self._memory.is_ready(digest):
                for job in self._cold.take(digest):
                    self._memory.pin(digest)
                    self._scheduler.add(job)


def _digest(job: Job) -> str:
    assert job.request.digest is not None
    return job.request.digest
