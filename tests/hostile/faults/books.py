"""What must agree when nothing is left to do: the clients' outcomes with the server's counters, its
quotas with what was computed, and everything that requests hold with an idle server."""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from remix_runtime.contracts import GenerationRequest, Meter, TokenEvent
from remix_runtime.engines.embedded import EmbeddedEngine
from server.http.connection import Door
from tests.hostile.faults.shapes import ENDPOINTS
from tests.unit.server.tenants import TenantServer

LATE_TOKENS = 64
"""What the engine's thread may schedule in the moments in which clients leave, all in all."""
LIMIT = 10**9
"""Of requests and tokens of each tenant, whose minute does not pass."""


class Counted:
    """The outermost middleware: what began and ended in the server, whatever it says of that."""

    def __init__(self, app: ASGIApp, books: Books) -> None:
        self._app = app
        self._books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ENDPOINTS:
            await self._app(scope, receive, send)
            return
        sent: Counter[str] = Counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent["begins"] += 1
            elif not message.get("more_body"):
                sent["ends"] += 1
            await send(message)

        self._books.begun += 1
        try:
            await self._app(scope, receive, counted)
        finally:
            self._books.ended += 1
            if max(sent.values(), default=0) > 1:
                self._books.findings.append(f"doubled: {scope['path']} was answered with {sent}")


@dataclass
class Books:
    """Of one trial."""

    findings: list[str] = field(default_factory=list)
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Answers that clients read to the end, by endpoint and status, if an app gave them."""
    cut: int = 0
    """Requests of which the clients do not know the server's outcome."""
    begun: int = 0
    ended: int = 0
    meters: dict[str, list[Meter]] = field(default_factory=lambda: defaultdict(list))
    """Of every sequence that an engine got, by tenant."""
    told: Counter[str] = field(default_factory=Counter)
    """Tokens of complete answers, as they say themselves; by tenant."""
    unknown: Counter[str] = field(default_factory=Counter)
    """The most that requests without a complete answer may have paid for tokenizing alone."""
    patience: int = 60
    """Seconds in which the server should be idle."""

    def watch(self, engine: Any) -> None:
        """Has the engine's requests written down."""
        generate = engine.generate

        def noted(request: GenerationRequest) -> AsyncGenerator[TokenEvent, None]:
            self.meters[request.tenant].append(request.meter)
            events: AsyncGenerator[TokenEvent, None] = generate(request)
            return events

        engine.generate = noted

    def incomplete(self, tenant: str, prompt_tokens: int) -> None:
        self.unknown[tenant] += math.ceil(prompt_tokens / 10) + 1

    async def disagreements(self, server: TenantServer, door: Door) -> list[str]:
        """Of a server that should be idle."""
        await _idle(server, door, self.patience)
        text = (await server.admin.get("/metrics")).text
        return [
            *self.findings,
            *self._of_counters(text),
            *self._of_quotas(server, text),
            *_of_holds(server, door),
            *await _of_engine(server.engine),
        ]

    def _of_counters(self, text: str) -> Iterator[str]:
        counted: Counter[tuple[str, str]] = Counter()
        for labels, value in samples(text, "remix_requests_total"):
            counted[labels["endpoint"], labels["status"]] += int(value)
        if not self.begun == self.ended == counted.total():
            yield f"counters: {self.begun} began, {self.ended} ended, {counted.total()} are counted"
        for key, number in self.answered.items():
            if counted[key] < number:
                yield f"counters: {number} of {key} were read, {counted[key]} are counted"
        if counted.total() - self.answered.total() > self.cut:
            yield (
                f"counters: {counted.total()} are counted, {self.answered.total()} were read and "
                f"{self.cut} cut"
            )
        for name in ("requests_running", "requests_waiting", "kv_used_tokens"):
            for _, value in samples(text, f"remix_{name}"):
                if value:
                    yield f"counters: {name} is {value:g}"

    def _of_quotas(self, server: TenantServer, text: str) -> Iterator[str]:
        by_status: dict[str, Counter[str]] = defaultdict(Counter)
        for labels, value in samples(text, "remix_requests_total"):
            by_status[labels["tenant"]][labels["status"]] += int(value)
        for tenant, usage in server.services.quotas._usage.items():
            if usage.running:
                yield f"places: {tenant} holds {usage.running}"
            for bucket in (usage.requests, usage.tokens):
                if bucket is not None and bucket._open:
                    yield f"reservations: {tenant} has {len(bucket._open)} open"
            assert usage.requests is not None
            assert usage.tokens is not None
            used = LIMIT - usage.requests.level
            most, refused = by_status[tenant].total(), by_status[tenant]["429"]
            if refused:  # and some of those that left before they were told so
                refused += by_status[tenant]["disconnected"]
            if not most - refused <= used <= most:
                yield f"quota: {tenant} used {used:g} requests of {dict(by_status[tenant])}"
            used = LIMIT - usage.tokens.level
            computed = sum(meter.tokens for meter in self.meters[tenant])
            if computed < self.told[tenant]:
                yield f"quota: {tenant} was told {self.told[tenant]} tokens of {computed}"
            late = LATE_TOKENS if isinstance(server.engine, EmbeddedEngine) else 0
            if not computed - late <= used <= computed + self.unknown[tenant]:
                yield (
                    f"quota: {tenant} used {used:g} tokens, computed were {computed}, and "
                    f"{self.unknown[tenant]} more may have been tokenized"
                )


def samples(text: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


async def _idle(server: TenantServer, door: Door, seconds: int) -> None:
    """Waits until nothing is under way, but not for ever: what is not idle then is told later."""
    for _ in range(seconds * 100):
        services, stats = server.services, server.engine.stats()
        if not (
            services.gate._inside
            or stats.running
            or stats.waiting
            or stats.kv_tokens_used
            or door.open
            or not services.worker.is_idle
            or not services.tokenizing.is_idle
            or services.adapters._tasks._waiting
            or any(usage.running for usage in services.quotas._usage.values())
        ):
            return
        await asyncio.sleep(0.01)


def _of_holds(server: TenantServer, door: Door) -> Iterator[str]:
    """What the server itself keeps of requests."""
    services = server.services
    wanted: Counter[str] = Counter()
    for live in services.sets.all.values():
        wanted.update(live.adapters.values())
    pins = {digest: entry.pins for digest, entry in services.adapters._entries.items()}
    if pins != wanted:
        yield f"pins: {pins}, the sets have {dict(wanted)}"
    held = {
        "generations": services.gate._inside,
        "bytes of bodies": services.bodies.num_bytes,
        "waits for cold adapters": services.adapters._cold_waits._total,
        "connections": len(door.open) + len(door.waiting),
        "places of the worker": services.worker._shares._total,
        "places of the tokenizer": services.tokenizing._shares._total,
        "places of the engine": server.engine._shares._total,
        "streams of the engine": len(server.engine._streams),
    }
    yield from (f"held: {number} {what}" for what, number in held.items() if number)
    if services.failing:
        yield f"held: {services.failing} fail"


async def _of_engine(engine: Any) -> list[str]:
    states = await engine.adapter_states()
    found = [
        f"references: {state.digest} has {state.requests}" for state in states if state.requests
    ]
    if not isinstance(engine, EmbeddedEngine):
        return found
    thread = engine._thread
    core = thread.running_core()
    return found + await thread.call(lambda: list(_of_core(core)))


def _of_core(core: Any) -> Iterator[str]:
    """In the engine's thread."""
    pool, bank, scheduler = core.scheduler.pool, core.bank, core.scheduler
    if sorted([*pool._empty, *pool._idle]) != list(range(pool.num_pages)):
        yield f"pages: {pool.num_free} of {pool.num_pages} are free"
    held = {
        "jobs": core._jobs,
        "running": scheduler.running,
        "queued": list(scheduler.queue),
        "wanted": scheduler._wanted,
        "waiting for a read": core.tiers._cold.digests,
        "being read": [core.tiers._reading] if core.tiers._reading else [],
    }
    yield from (f"jobs: {len(items)} {what}" for what, items in held.items() if items)
    for digest, entry in bank._entries.items():
        if entry.pins:
            yield f"pins: {digest} has {entry.pins} in the bank"
        if entry.reserved:
            yield f"memory: {digest} has some set aside"
    ready = [entry for entry in bank._entries.values() if entry.adapter is not None]
    if (bank.host_count, bank.host_bytes_used) != (len(ready), sum(e.num_bytes for e in ready)):
        yield f"memory: {bank.host_bytes_used} bytes for {bank.host_count}, found {len(ready)}"
    residents = bank._slots._residents
    yield from (f"slots: {d} has {item.pins}" for d, item in residents.items() if item.pins)
    taken = [item.slot for item in residents.values()]
    if sorted([*bank._slots._free, *taken]) != list(range(bank.num_slots)):
        yield f"slots: {bank._slots._free} are free, {taken} taken of {bank.num_slots}"
