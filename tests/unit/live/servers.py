"""Two servers on one directory, each with a store of its own, whose engines can be told to refuse
adapters or to take their time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remix_runtime.contracts import (
    AdapterInfo,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from remix_runtime.engines.fake import FakeConfig
from remix_runtime.engines.fake_model import HashModel
from remix_runtime.errors import CapacityError, ParityError
from server.live.sets import UnknownModelError
from tests.unit.live.conftest import WatchedEngine
from tests.unit.live.crash import Node, node
from tests.unit.live.model import BAD
from tests.unit.tenancy.model import Adapters
from tests.unit.tenancy.samples import EVERYTHING

ACTOR = "test"
SOON_SECONDS = 60.0
"""By then a server has done by itself what it has to."""
NEVER = 3600.0
"""Servers look for changes when they are told to."""


class MoodyEngine(WatchedEngine):
    """Has one adapter in memory besides those in use, and reads others from the store again."""

    def __init__(self, bad: str) -> None:
        super().__init__(FakeConfig(max_running=100, host_adapters=1))
        self._bad = bad
        self.heal()
        self.waiting = 0
        """Loads that wait until they may go on."""

    def heal(self) -> None:
        self.refused = {self._bad}
        self.full = False

    async def load_adapter(self, folder: Path, digest: str | None = None) -> AdapterInfo:
        if folder.name in self.refused:
            raise ParityError(f"{folder}: other routes than were recorded")
        if self.full:
            raise CapacityError("no room")
        self.waiting += 1
        try:
            return await super().load_adapter(folder, digest)
        finally:
            self.waiting -= 1


@dataclass
class Running:
    """A request with its first token, and all that the server holds for it."""

    request: GenerationRequest
    events: Any
    """An async generator of `TokenEvent`."""
    tokens: list[int]
    holds: ExitStack


class Servers:
    """Calls as they come from outside, by the server `at` which they arrive. Adapters have names:
    `adapters` has their folders and digests."""

    def __init__(self, root: Path, adapters: Mapping[str, tuple[Path, str]]) -> None:
        self._root = root
        self._source = {name: str(folder) for name, (folder, _) in adapters.items()}
        self._digest = {name: digest for name, (_, digest) in adapters.items()}
        self._name = {digest: name for name, digest in self._digest.items()}
        self._stacks = [AsyncExitStack(), AsyncExitStack()]
        self._running: list[dict[int, Running]] = [{}, {}]
        self._nodes: list[Node] = []
        self.engines: list[MoodyEngine] = []

    async def open(self) -> None:
        for at in range(2):
            self.engines.append(MoodyEngine(self._digest[BAD]))
            self._nodes.append(await self._start(at))

    async def close(self) -> None:
        """With nothing left behind, whatever state this is in."""
        for at, stack in enumerate(self._stacks):
            for number in list(self._running[at]):
                await self.end(at, number, whole=False)
            await stack.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    async def create_tenant(self, at: int, tenant: str) -> None:
        await self._nodes[at].directory.create_tenant(tenant, actor=ACTOR)

    async def delete_tenant(self, at: int, tenant: str) -> None:
        await self._nodes[at].directory.delete_tenant(tenant, actor=ACTOR)

    async def import_adapter(self, at: int, adapter: str) -> None:
        assert await self._nodes[at].add(self._source[adapter]) == self._digest[adapter]

    async def delete_adapter(self, at: int, adapter: str) -> None:
        await self._nodes[at].directory.delete_adapter(self._digest[adapter], actor=ACTOR)

    async def put(
        self, at: int, tenant: str, adapters: Adapters, dry_run: bool, *, expected: int | None
    ) -> tuple[int, Adapters]:
        wanted = {name: self._digest[adapter] for name, adapter in adapters.items()}
        result = await self._nodes[at].swaps.put(
            tenant, wanted, expected=expected, actor=ACTOR, dry_run=dry_run
        )
        return result.after.revision, self._named(result.after.adapters)

    async def roll_back(
        self, at: int, tenant: str, to: int, *, expected: int | None
    ) -> tuple[int, Adapters]:
        result = await self._nodes[at].swaps.rollback(tenant, to, expected=expected, actor=ACTOR)
        return result.after.revision, self._named(result.after.adapters)

    async def begin(self, at: int, tenant: str, name: str, number: int) -> str:
        """As `server/api/calls.py` and `server/api/streaming.py` do."""
        here = self._nodes[at]
        digest = here.sets.resolve(tenant, name, may_use_base=False).digest
        assert digest is not None
        with ExitStack() as holds:
            holds.enter_context(here.adapters.pinned([digest]))
            await here.adapters.load_for_request(digest)
            request = GenerationRequest(
                request_id=str(number),
                prompt_token_ids=(number % 256,),
                params=SamplingParams(max_tokens=3, temperature=0, ignore_eos=True),
                digest=digest,
                tenant=tenant,
            )
            events = here.engine.generate(request)
            tokens = [*(await anext(events)).token_ids]
            self._running[at][number] = Running(request, events, tokens, holds.pop_all())
        return self._name[digest]

    async def end(self, at: int, number: int, whole: bool) -> None:
        """With the last token, or because the client goes away."""
        running = self._running[at].pop(number)
        with running.holds:
            reason = None
            if whole:
                async for event in running.events:
                    running.tokens += event.token_ids
                    reason = event.finish_reason
                model = HashModel(running.request)
                assert running.tokens == [model.next_token()[0] for _ in range(3)]
                assert reason == FinishReason.LENGTH
            await running.events.aclose()

    async def refresh(self, at: int) -> None:
        await self._nodes[at].follower.refresh()

    async def collect(self, at: int) -> None:
        await self._nodes[at].collect()

    async def refuse(self, at: int, adapter: str | None) -> None:
        if adapter is None:
            self.engines[at].full = True
        else:
            self.engines[at].refused.add(self._digest[adapter])

    async def heal(self, at: int) -> None:
        self.engines[at].heal()

    async def restart(self, at: int) -> None:
        """All of the process is new; what is on disk stays."""
        for number in list(self._running[at]):
            await self.end(at, number, whole=False)
        await self._stacks[at].aclose()
        self.engines[at] = MoodyEngine(self._digest[BAD])
        self._nodes[at] = await self._start(at)

    async def settle(self) -> None:
        """Raises `TimeoutError` where what has begun does not end."""
        async with asyncio.timeout(SOON_SECONDS):
            for here in self._nodes:
                await here.adapters.settle()

    def live(self, at: int) -> dict[str, tuple[int, Adapters]]:
        return {
            tenant: (live.revision, self._named(live.adapters))
            for tenant, live in self._nodes[at].sets.all.items()
        }

    def lag(self, at: int) -> dict[str, tuple[int, int]]:
        return self._nodes[at].follower.set_lag()

    def pins(self, at: int) -> dict[str, int]:
        adapters = self._nodes[at].adapters
        return {self._name[digest]: adapters.pins(digest) for digest in adapters.digests}

    async def held(self, at: int) -> set[str]:
        return {self._name[state.digest] for state in await self.engines[at].adapter_states()}

    def stored(self, at: int) -> set[str]:
        return {self._name[digest] for digest in self._nodes[at].store.digests()}

    def resolved(self, at: int, tenant: str, name: str) -> str | None:
        try:
            target = self._nodes[at].sets.resolve(tenant, name, may_use_base=False)
        except UnknownModelError:
            return None
        return self._name[target.digest or ""]

    async def history(self, at: int, tenant: str) -> dict[int, Adapters]:
        revisions = await self._nodes[at].directory.revisions(tenant, limit=EVERYTHING)
        return {item.revision: self._named(item.adapters) for item in revisions}

    async def newest(self, at: int) -> dict[str, tuple[int, Adapters]]:
        return {
            tenant: (item.revision, self._named(item.adapters))
            for tenant, item in (await self._nodes[at].directory.current_sets()).items()
        }

    async def registered(self, at: int) -> set[str]:
        return {self._name[record.digest] for record in await self._nodes[at].directory.adapters()}

    def _named(self, adapters: Adapters) -> Adapters:
        return {name: self._name[digest] for name, digest in adapters.items()}

    async def _start(self, at: int) -> Node:
        url, root = f"sqlite:///{self._root}/directory.db", self._root / f"store-{at}"
        started = node(url, root, poll_seconds=NEVER, engine=self.engines[at])
        return await self._stacks[at].enter_async_context(started)
