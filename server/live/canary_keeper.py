"""Keeps the canaries: loads them, shares what was seen of them with the other servers, and ends
them by what all have seen.

Any server ends a canary for all of them: the first one that finds a reason writes it. It stops
sending it requests before it writes, so a database that does not answer holds up no rollback here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from dataclasses import replace
from functools import partial
from typing import Any

from remix_runtime.watch import Watch, Watched
from server.live.adapters import UNSERVABLE, LiveAdapters
from server.live.canary.figures import Figures
from server.live.canary.running import RunningCanary
from server.live.canary.verdict import Judgement, Verdict, judge
from server.live.follower import LOAD_SECONDS, Follower
from server.live.metrics import AUTOMATIC, BY_HAND, LiveMetrics
from server.live.sets import LiveSets
from server.live.swap import BadSetError
from server.tenancy.canary_rows import Canary, CanaryRules, Outcome
from server.tenancy.directory import Directory
from server.tenancy.errors import UnknownCanaryError
from server.tenancy.records import now

log = logging.getLogger(__name__)

CANARIES_TASK = "canaries"
LOADS_TASK = "canary loads"
"""Names of the watched tasks."""
ACTOR = "canary"
"""Who the audit says did what no person did."""

LOOK_SECONDS = 1.0
REPORT_SECONDS = 5.0
"""Seconds between two looks at the canaries, and between two exchanges with the other servers."""
DUE_SECONDS = 60.0
_LAST_PAUSE_SECONDS = 5.0


class CanaryKeeper:
    """Begins, shows and ends canaries, on request and by itself."""

    def __init__(
        self,
        directory: Directory,
        adapters: LiveAdapters,
        sets: LiveSets,
        follower: Follower,
        metrics: LiveMetrics,
        watch: Watch,
    ) -> None:
        self._directory = directory
        self._adapters = adapters
        self._sets = sets
        self._follower = follower
        self._metrics = metrics
        self._watch = watch
        self._server = secrets.token_hex(8)
        """This process, in reports."""
        self._reported: dict[str, dict[str, Any]] = {}
        """The last report on each canary."""
        self._exchanged = -math.inf
        self._loads: dict[str, Watched] = {}
        """By canary."""
        self._watched: Watched | None = None
        self._time = asyncio.get_running_loop().time

    def start(self) -> None:
        self._watched = self._watch.start(
            CANARIES_TASK,
            self._keep,
            what="keeping the canaries",
            due_seconds=DUE_SECONDS,
            last_pause_seconds=_LAST_PAUSE_SECONDS,
        )

    async def stop(self) -> None:
        if self._watched is not None:
            await self._watched.stop()
        await asyncio.gather(*(load.stop() for load in self._loads.values()))

    # On request

    async def begin(
        self,
        tenant: str,
        name: str,
        digest: str,
        *,
        share: float,
        rules: CanaryRules,
        actor: str,
        dry_run: bool = False,
    ) -> tuple[Canary, bool]:
        """Loads and checks an adapter, and gives it its share of the requests. Returns the canary,
        and whether it is new. Raises `BadSetError` for an adapter that cannot be served, and as
        `CanaryDirectory.begin` does."""
        begin = self._directory.canaries.begin
        # Before the costly part; the write looks again.
        before = await begin(
            tenant, name, digest, share=share, rules=rules, actor=actor, dry_run=True
        )
        with self._adapters.pinned([digest]):
            try:
                await self._adapters.load(digest, tenant)
            except UNSERVABLE as error:
                raise BadSetError({name: str(error)}) from error
            canary = await begin(
                tenant, name, digest, share=share, rules=rules, actor=actor, dry_run=dry_run
            )
            if not dry_run:
                await self._follower.refresh()
        return canary, canary.created > before.created

    async def roll_back(self, tenant: str, name: str, *, actor: str) -> Canary:
        """Ends the name's canary by hand. One that has ended is returned as it is. Raises
        `UnknownCanaryError`."""
        canary = await self._directory.canaries.newest(tenant, name)
        if canary.outcome is not None:
            return canary
        return await self._end(canary, Outcome.ROLLED_BACK, "by hand", actor=actor)

    async def shown(self, tenant: str) -> list[tuple[Canary, str]]:
        """The newest canary of each name, with its figures, and what one that runs waits for."""
        newest = await self._directory.canaries.of_tenant(tenant)
        return [await self._shown(canary) for canary in newest]

    async def _shown(self, canary: Canary) -> tuple[Canary, str]:
        if canary.outcome is not None:
            return canary, ""
        figures = await self._all_figures(canary)
        judgement = _judge(canary, figures)
        return replace(canary, figures=figures.summary()), judgement.reason

    # By itself

    async def _keep(self, task: Watched) -> None:
        while True:
            self._load_missing()
            failure: Exception | None = None
            for canary in self._sets.canaries.all:
                try:
                    await self._look_at(canary)
                except Exception as error:
                    failure = error  # the others do not wait for this one
            if self._time() - self._exchanged >= REPORT_SECONDS:
                await self._exchange()
                self._exchanged = self._time()
            if failure is not None:
                raise failure
            await task.rest(LOOK_SECONDS)

    async def _look_at(self, canary: RunningCanary) -> None:
        judgement = _judge(canary.record, canary.figures)
        if canary.stopped is not None:
            judgement = Judgement(Verdict.ROLL_BACK, canary.stopped)
        elif canary.fault is not None:
            judgement = Judgement(Verdict.ROLL_BACK, f"a server cannot load it: {canary.fault}")
        if judgement.verdict is Verdict.PROMOTE:
            # By what all have seen by now: another server may know better.
            figures = await self._all_figures(canary.record)
            judgement = _judge(canary.record, figures)
        if judgement.verdict is Verdict.ROLL_BACK:
            canary.stopped = judgement.reason
            await self._end(canary.record, Outcome.ROLLED_BACK, judgement.reason, actor=ACTOR)
        elif judgement.verdict is Verdict.PROMOTE:
            await self._end(canary.record, Outcome.PROMOTED, judgement.reason, actor=ACTOR)

    async def _end(self, canary: Canary, outcome: Outcome, reason: str, *, actor: str) -> Canary:
        figures = (await self._all_figures(canary)).summary()
        try:
            ended = await self._directory.canaries.end(
                canary, outcome, reason=reason, figures=figures, actor=actor
            )
        except UnknownCanaryError:  # another one has its place, or its tenant is gone
            if actor != ACTOR:
                raise
            ended = canary
        if ended.outcome is outcome and ended.reason == reason:
            decision = AUTOMATIC if actor == ACTOR else BY_HAND
            self._metrics.canaries.labels(outcome, decision).inc()
            log.warning(
                "canary %s of %s/%s was %s: %s; %s",
                *(canary.digest, canary.tenant, canary.name, outcome, reason, figures),
            )
        await self._follower.refresh()
        return ended

    async def _exchange(self) -> None:
        """Tells the other servers what was seen here, and reads what they have told."""
        running = self._sets.canaries.all
        for canary in running:
            report = canary.seen.as_json()
            if report != self._reported.get(canary.record.id) and not canary.seen.is_empty:
                await self._directory.canaries.report(canary.record.id, self._server, report)
                self._reported[canary.record.id] = report
        ids = {canary.record.id for canary in running}
        self._reported = {key: told for key, told in self._reported.items() if key in ids}
        if running:
            others = await self._others(ids)
            for canary in running:
                canary.others = others[canary.record.id]

    async def _all_figures(self, canary: Canary) -> Figures:
        """What all servers have seen, the others by what they have told the database by now."""
        others = (await self._others({canary.id}))[canary.id]
        running = self._sets.canaries.of(canary)
        if running is None:
            return others
        running.others = others
        return running.figures

    async def _others(self, ids: set[str]) -> dict[str, Figures]:
        reports = await self._directory.canaries.reports(ids)
        return {
            canary: sum(
                (Figures.from_json(told) for name, told in of.items() if name != self._server),
                Figures(),
            )
            for canary, of in reports.items()
        }

    def _load_missing(self) -> None:
        """Begins to load what is not loaded, and gives up what need not be any more."""
        running = self._sets.canaries
        missing = {
            canary.record.id: canary
            for canary in running.all
            if canary.fault is None and not running.is_loaded(canary)
        }
        for ident in self._loads.keys() - missing.keys():
            self._loads.pop(ident).cancel()
        for ident in missing.keys() - self._loads.keys():
            canary = missing[ident].record
            self._loads[ident] = self._watch.start(
                LOADS_TASK,
                partial(self._load, missing[ident]),
                what=f"loading canary {canary.digest} of {canary.tenant}/{canary.name}",
                due_seconds=LOAD_SECONDS,
                ends=True,
            )

    async def _load(self, canary: RunningCanary, _task: Watched) -> None:
        """What fails by the server's or the database's fault is tried again."""
        digest = canary.record.digest
        with self._adapters.pinned([digest]):
            try:
                await self._adapters.load(digest, canary.record.tenant)
            except UNSERVABLE as error:
                canary.fault = str(error)
        self._loads.pop(canary.record.id, None)


def _judge(canary: Canary, figures: Figures) -> Judgement:
    age = (now() - canary.created).total_seconds()
    return judge(canary.rules, figures, share=canary.share, age_seconds=age)
