"""Set swaps under load: does any request fail, does any answer mix versions, who feels it?

Works on a running server through its two APIs. Every adapter has a text of its own for one greedy
prompt, learnt before the storm, and `system_fingerprint` says which adapter answered; so each
answer tells its version twice, and the record of swaps tells which versions it could be.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.tenants.served import client, completion

NAMES = ("x", "y")
"""The names in every set; both get another adapter with every swap."""

Entries = Mapping[str, str]


@dataclass(slots=True)
class Revision:
    entries: Entries
    asked: float
    """From here on an answer may be of this revision,"""
    replaced: float = float("inf")
    """up to here."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What names stood for at one moment of a time."""

    entries: Entries
    since: float
    until: float


@dataclass(slots=True)
class Tenant:
    name: str
    data: httpx.AsyncClient
    """With the tenant's key."""
    history: list[Revision] = field(default_factory=list)
    """By number, so that a rollback finds them."""
    seen: list[Observation] = field(default_factory=list)

    @property
    def set_url(self) -> str:
        return f"/admin/v1/tenants/{self.name}/set"

    def record(self, entries: Entries, asked: float) -> None:
        if self.history and self.history[-1].entries == entries:
            return  # nothing was written
        if self.history:
            self.history[-1].replaced = time.monotonic()
        self.history.append(Revision(entries, asked))

    def mixtures(self) -> list[str]:
        """What was seen that no revision had at that time. To be asked at the end, when it is known
        which revisions there were."""
        return [
            f"{self.name}: found {dict(seen.entries)}"
            for seen in self.seen
            if not any(
                seen.entries.items() <= revision.entries.items()
                and revision.asked <= seen.until
                and revision.replaced >= seen.since
                for revision in self.history
            )
        ]


@dataclass(slots=True)
class Report:
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    swaps: Counter[int] = field(default_factory=Counter)
    """By HTTP status."""
    unexpected: list[str] = field(default_factory=list)
    """Swaps that ended otherwise than they should."""
    swap_seconds: list[float] = field(default_factory=list)
    """Seconds of the swaps that were applied."""
    quiet: list[float] = field(default_factory=list)
    """Seconds to the first token while nobody swaps,"""
    beside: list[float] = field(default_factory=list)
    """and of the other tenants while one does."""


class Storm:
    """Tenants on a server, each with two of the good adapters under `NAMES`."""

    def __init__(self, admin: httpx.AsyncClient, seed: int) -> None:
        self.report = Report()
        self._admin = admin
        self._tenants: list[Tenant] = []
        self._texts: dict[str, str] = {}
        """What each usable digest answers."""
        self._bad: list[str] = []
        """Digests that must be refused."""
        self._random = random.Random(seed)
        self._swapping: str | None = None
        """The tenant whose set is being swapped; `*` for all."""

    async def prepare(
        self, url: str, tenants: int, good: Sequence[Path], bad: Sequence[Path]
    ) -> None:
        """Creates tenants, imports the adapters in the folders and learns what good ones answer."""
        digests = [await self._import(folder) for folder in good]
        self._bad = [secrets.token_hex(32), *[await self._import(folder) for folder in bad]]
        for name in (f"tenant-{number}" for number in range(tenants)):
            await self._post("/tenants", {"id": name})
            key = (await self._post(f"/tenants/{name}/keys"))["secret"]
            self._tenants.append(Tenant(name, client(url, key)))
        first = self._tenants[0]
        for digest in digests:
            await self._put(first, dict.fromkeys(NAMES, digest))
            body = completion(NAMES[0], stream=False)
            answer = await first.data.post("/v1/completions", json=body)
            self._texts[digest] = answer.raise_for_status().json()["choices"][0]["text"]
        if len(set(self._texts.values())) < len(self._texts):
            raise ValueError("two adapters say the same; take stronger ones or another prompt")
        for tenant in self._tenants:
            await self._put(tenant, dict(zip(NAMES, digests, strict=False)))

    async def _import(self, folder: Path) -> str:
        return str((await self._post("/adapters", {"source": str(folder)}))["digest"])

    async def _post(self, path: str, body: Mapping[str, str] | None = None) -> Any:
        return (await self._admin.post(f"/admin/v1{path}", json=body)).raise_for_status().json()

    async def _put(self, tenant: Tenant, entries: Entries) -> None:
        answer = await self._admin.put(tenant.set_url, json={"adapters": entries})
        answer.raise_for_status()
        tenant.record(entries, asked=0.0)

    @asynccontextmanager
    async def load(self, clients_per_tenant: int) -> AsyncIterator[None]:
        """Steady requests from every tenant as long as the context is open."""
        stop = asyncio.Event()
        clients = [
            asyncio.create_task(self._client(tenant, stop))
            for tenant in self._tenants
            for _ in range(clients_per_tenant)
        ]
        try:
            yield
        finally:
            stop.set()
            await asyncio.gather(*clients)
            for tenant in self._tenants:
                await tenant.data.aclose()
                self.report.mixed += tenant.mixtures()

    async def swap(self, count: int, num_bad: int, *, block: int, rest_seconds: float) -> None:
        """`count` swaps, `num_bad` of them bad, one after the other; tenants take turns in blocks
        of that many, with a rest after each block in which nobody swaps."""
        bad = set(self._random.sample(range(count), num_bad))
        turns = itertools.cycle(self._tenants)
        tenant = next(turns)
        for number in range(count):
            if number % block == 0:
                self._swapping = None
                await asyncio.sleep(rest_seconds)
                tenant = next(turns)
                self._swapping = tenant.name
            entries = self._random.choice(self._other_entries(tenant))
            if number in bad:
                entries = {**entries, self._random.choice(NAMES): self._random.choice(self._bad)}
            body, expected = {"adapters": entries}, 422 if number in bad else 200
            await self._change(tenant, entries, "PUT", json=body, expected=expected)
        self._swapping = None

    async def roll_back(self, count: int) -> None:
        """Rollbacks of all tenants at the same time, to any revision there was."""

        async def one(tenant: Tenant) -> None:
            for _ in range(count):
                to = self._random.randrange(1, len(tenant.history) + 1)
                entries = tenant.history[to - 1].entries
                body = {"revision": to}
                await self._change(tenant, entries, "POST", "/rollback", json=body, expected=200)

        self._swapping = "*"
        await asyncio.gather(*map(one, self._tenants))
        self._swapping = None

    async def race(self, rounds: int, racers: int) -> None:
        """PUTs of different sets with the same If-Match: one wins, the others are told."""
        self._swapping = "*"
        for _ in range(rounds):
            tenant = self._random.choice(self._tenants)
            tag = (await self._admin.get(tenant.set_url)).headers["etag"]
            match = {"If-Match": tag}
            puts = (
                self._change(tenant, entries, "PUT", json={"adapters": entries}, headers=match)
                for entries in self._random.sample(self._other_entries(tenant), racers)
            )
            statuses = Counter(await asyncio.gather(*puts))
            if statuses != {200: 1, 412: racers - 1}:
                self.report.unexpected.append(f"race: {dict(statuses)}")
        self._swapping = None

    async def _change(
        self,
        tenant: Tenant,
        entries: Entries,
        method: str,
        path: str = "",
        *,
        expected: int | None = None,
        **request: Any,
    ) -> int:
        """Asks for a change of the tenant's set to `entries`. The status; one with an expected
        status is judged and timed."""
        asked = time.monotonic()
        answer = await self._admin.request(method, tenant.set_url + path, **request)
        seconds, status = time.monotonic() - asked, answer.status_code
        self.report.swaps[status] += 1
        if status == 200:
            tenant.record(entries, asked)
        if expected is not None and status != expected:
            self.report.unexpected.append(f"{method} {path}: {status} {answer.text}")
        if expected is not None and status == 200:
            self.report.swap_seconds.append(seconds)
        return status

    def _other_entries(self, tenant: Tenant) -> list[Entries]:
        """All sets but the tenant's last one."""
        pairs = itertools.permutations(self._texts, len(NAMES))
        sets = [dict(zip(NAMES, pair, strict=True)) for pair in pairs]
        return [entries for entries in sets if entries != tenant.history[-1].entries]

    async def _client(self, tenant: Tenant, stop: asyncio.Event) -> None:
        for name in itertools.cycle(NAMES):
            if stop.is_set():
                return
            try:
                await self._ask(tenant, name)
                await self._list(tenant)
            except (httpx.HTTPError, json.JSONDecodeError, KeyError) as error:
                self.report.failed.append(f"{tenant.name}/{name}: {error!r}")

    async def _ask(self, tenant: Tenant, name: str) -> None:
        began, others_swap = time.monotonic(), self._others_swap(tenant)
        first, text, prints = None, "", set[str]()
        body = completion(name, stream=True)
        async with tenant.data.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self.report.failed.append(f"{answer.status_code}: {answer.text}")
                return
            done = False
            async for line in answer.aiter_lines():
                if not line.startswith("data: ") or done:
                    continue
                done = line == "data: [DONE]"
                if not done:
                    first = first or time.monotonic()
                    chunk = json.loads(line.removeprefix("data: "))
                    prints.add(chunk["system_fingerprint"])
                    text += chunk["choices"][0]["text"]
        ended = time.monotonic()
        self.report.answers += 1
        if not done or first is None:
            self.report.failed.append(f"{tenant.name}/{name}: the stream broke off")
            return
        tenant.seen += [Observation({name: digest}, began, ended) for digest in prints]
        if len(prints) != 1 or {self._texts.get(digest) for digest in prints} != {text}:
            self.report.mixed.append(f"{tenant.name}/{name}: {prints} said {text!r}")
        if others_swap == self._others_swap(tenant) is not None:
            (self.report.beside if others_swap else self.report.quiet).append(first - began)

    async def _list(self, tenant: Tenant) -> None:
        """The list of models is of one revision, never of two."""
        began = time.monotonic()
        models = (await tenant.data.get("/v1/models")).json()["data"]
        found = {model["id"]: model["root"] for model in models}
        tenant.seen.append(Observation(found, began, time.monotonic()))
        if found.keys() != set(NAMES):
            self.report.mixed.append(f"{tenant.name}: the models are {found}")

    def _others_swap(self, tenant: Tenant) -> bool | None:
        """None: this tenant's own set is being swapped."""
        if self._swapping in (tenant.name, "*"):
            return None
        return self._swapping is not None
