"""Any sequence of swaps, requests, failures and restarts on two servers that share a directory has
the live sets and the adapters in memory as a plain model has them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from remix_runtime import watch
from remix_runtime.errors import RemixError
from server.live import adapters as live_adapters
from server.live.swap import BadSetError
from server.store import rooms
from server.tenancy.errors import UnknownAdapterError
from tests.examination import examine_here
from tests.postgres import memory_folder
from tests.unit.adapter.checkpoint.adapters import TENSOR_FILE
from tests.unit.live.model import BAD, BASE, DAMAGED, GOOD, UNKNOWN, Model
from tests.unit.live.servers import SOON_SECONDS, Servers
from tests.unit.server.harness import eventually
from tests.unit.store.conftest import write_adapter
from tests.unit.tenancy.model import Adapters

HEAD_START_SECONDS = 0.01
"""Of the second of two calls, before the first one may go on."""

LEFT = "left"
"""The outcome of a call whose caller does not wait for it."""
MODELS = [(tenant, name) for tenant in "abc" for name in ("p", "q", BASE)]
"""What requests may ask for; there is no tenant c."""

Action = Callable[[Any], Any]
"""A call without the one who is asked."""


@dataclass(frozen=True)
class Call:
    """Of a method that `Servers` and `Model` have."""

    method: str
    at: int
    args: tuple[Any, ...] = ()
    offset: int | None = None
    """From the present revision of the tenant's set to the one that is expected; None: any."""


def calls(method: str, *args: st.SearchStrategy[Any], swaps: bool = False) -> Any:
    offsets = st.sampled_from([0, 0, 0, None, None, -1, 1]) if swaps else st.none()
    return st.builds(Call, st.just(method), st.integers(0, 1), st.tuples(*args), offsets)


SOME = st.integers(0, 9)
"""Which one of those that there are."""
TENANTS = st.sampled_from(["a", "a", "a", "b"])
NAMES = st.sampled_from([*"pq" * 6, BASE])
SETS = st.dictionaries(NAMES, st.sampled_from([*GOOD * 5, BAD, UNKNOWN]), max_size=2)
GOOD_SETS = st.dictionaries(st.sampled_from("pq"), st.sampled_from(GOOD), max_size=2)
PUTS = calls("put", TENANTS, SETS, st.sampled_from([False] * 4 + [True]), swaps=True)
RACERS = st.builds(
    lambda at, adapters: Call("put", at, ("a", adapters, False), offset=0),
    st.integers(0, 1),
    GOOD_SETS,
)
"""Swaps that succeed where nobody is faster."""
ROLLBACKS = calls("roll_back", TENANTS, SOME, swaps=True)
BEGINNINGS = calls("begin", SOME)
DELETIONS = calls("delete_adapter", st.sampled_from([*GOOD * 2, BAD, UNKNOWN]))
COLLECTIONS = calls("collect")
REFRESHES = calls("refresh")
IMPORTS = calls("import_adapter", st.sampled_from([*GOOD * 2, BAD, DAMAGED]))
TENANT_CHANGES = calls("create_tenant", TENANTS) | calls("delete_tenant", st.just("b"))
REFUSALS = calls("refuse", st.sampled_from([None, *GOOD]))


class SwapMachine(RuleBasedStateMachine):
    def __init__(self, runner: asyncio.Runner, adapters: Mapping[str, tuple[Path, str]]) -> None:
        super().__init__()
        self._run = runner.run
        self._folder = TemporaryDirectory(prefix="remix-swaps-", dir=memory_folder())
        self._servers = Servers(Path(self._folder.name), adapters)
        self._model = Model()
        self._requests = 0
        self._run(self._servers.open())

    @initialize()
    def begin_with_something(self) -> None:
        for tenant in ("a", "b"):
            self._do(Call("create_tenant", 0, (tenant,)))
        for number, adapter in enumerate((*GOOD, BAD)):
            self._do(Call("import_adapter", number % 2, (adapter,)))
        for tenant, adapters in {"a": {"p": "x", "q": "y"}, "b": {"p": "x"}}.items():
            self._swap(Call("put", 0, (tenant, adapters, False)), followed=True)

    @rule(call=PUTS | ROLLBACKS, followed=st.booleans())
    def swap(self, call: Call, followed: bool) -> None:
        self._swap(call, followed)

    @rule(first=RACERS, second=RACERS)
    def race_for_a_revision(self, first: Call, second: Call) -> None:
        self._do_at_once(first, second)

    @rule(call=RACERS)
    def leave_and_swap_again(self, call: Call) -> None:
        self._do_at_once(call, call, leave=True)

    @rule(call=RACERS)
    def swap_what_the_other_cannot_load(self, call: Call) -> None:
        self._do(Call("refuse", 1 - call.at, (None,)))
        self._swap(call, followed=True)

    @rule(first=PUTS | ROLLBACKS, second=PUTS | ROLLBACKS)
    def swap_two_at_once(self, first: Call, second: Call) -> None:
        self._do_at_once(first, second)

    @rule(first=PUTS, second=BEGINNINGS | DELETIONS | COLLECTIONS | REFRESHES)
    def swap_while_something_happens(self, first: Call, second: Call) -> None:
        self._do_at_once(first, second)

    @rule(call=BEGINNINGS)
    def begin_a_request(self, call: Call) -> None:
        self._do(call)

    @precondition(lambda self: self._running())
    @rule(number=SOME, whole=st.booleans())
    def end_a_request(self, number: int, whole: bool) -> None:
        self._do(self._end(number, whole))

    @precondition(lambda self: self._running())
    @rule(first=PUTS, number=SOME, whole=st.booleans())
    def swap_while_a_request_ends(self, first: Call, number: int, whole: bool) -> None:
        self._do_at_once(first, self._end(number, whole))

    @precondition(lambda self: self._running())
    @rule(number=SOME, at=st.integers(0, 1))
    def retire_an_adapter_in_use(self, number: int, at: int) -> None:
        """Out of all sets, deleted, and collected where a request still runs on it."""
        running = self._running()
        there, request = running[number % len(running)]
        adapter = self._model.servers[there].running[request]
        for tenant, (_, adapters) in self._newest().items():
            others = {name: other for name, other in adapters.items() if other != adapter}
            self._swap(Call("put", at, (tenant, others, False)), followed=True)
        self._do(Call("delete_adapter", at, (adapter,)))
        self._do(Call("collect", there))

    @rule(call=IMPORTS | DELETIONS | TENANT_CHANGES | REFRESHES)
    def change_the_directory_or_follow(self, call: Call) -> None:
        self._do(call)

    @rule(call=REFUSALS | calls("heal"))
    def fail_to_load_or_heal(self, call: Call) -> None:
        self._do(call)

    @rule(call=COLLECTIONS)
    def collect_garbage(self, call: Call) -> None:
        self._do(call)
        server = self._model.servers[call.at]
        assert self._servers.stored(call.at) == server.stored  # all that is referred to, only that

    @rule(call=calls("restart"))
    def restart(self, call: Call) -> None:
        self._do(call)

    @invariant()
    def the_servers_are_as_the_model(self) -> None:
        self._run(self._soon_as_the_model())

    def teardown(self) -> None:
        try:
            self._end_with_nothing()
        finally:
            self._run(self._servers.close())
            self._folder.cleanup()

    def _end_with_nothing(self) -> None:
        """Healed, the servers agree; without requests and sets nothing is held."""
        for at in range(2):
            self._do(Call("heal", at))
            self._do(Call("refresh", at))
            self.the_servers_are_as_the_model()
            assert self._servers.lag(at) == {}
            assert self._servers.live(at) == self._run(self._servers.newest(at))
        while self._running():
            self._do(self._end(0, True))
        for tenant, revisions in self._model.directory.sets.items():
            if tenant in self._model.directory.quotas:
                assert self._run(self._servers.history(0, tenant)) == revisions
                self._do(Call("roll_back", 0, (tenant, 0)))
        for at in range(2):
            self._do(Call("refresh", at))
            self.the_servers_are_as_the_model()
            assert self._servers.pins(at) == {}
            assert self._run(self._servers.held(at)) == set()

    def _running(self) -> list[tuple[int, int]]:
        """Servers and numbers of requests."""
        servers = enumerate(self._model.servers)
        return [(at, number) for at, server in servers for number in server.running]

    def _end(self, number: int, whole: bool) -> Call:
        running = self._running()
        at, number = running[number % len(running)]
        return Call("end", at, (number, whole))

    def _swap(self, call: Call, followed: bool) -> None:
        """As the routes of the admin API do; the other server may follow at once."""
        self._do(call)
        self._do(Call("refresh", call.at))
        if followed:
            self._do(Call("refresh", 1 - call.at))

    def _do(self, call: Call) -> object:
        self._look()
        action = self._action(call)
        found = self._run(outcome(action(self._servers)))
        assert found == modelled(self._model, action)
        return found

    def _do_at_once(self, *calls: Call, leave: bool = False) -> None:
        """The second call begins when the first one waits for the engine, or is done. They end as
        if one came after the other; or as if there was only the second one, where the caller of
        the first one leaves while it waits."""
        self._look()
        first, second = (self._action(call) for call in calls)
        found = self._run(self._at_once(calls[0].at, first, second, leave))
        one, other = deepcopy(self._model), deepcopy(self._model)
        if found[0] == LEFT:
            assert found[1] == modelled(self._model, second)
        elif found == (modelled(one, first), modelled(one, second)):
            self._model = one
        else:
            last, before = modelled(other, second), modelled(other, first)
            assert found == (before, last)
            self._model = other
        for at in range(2):
            self._do(Call("refresh", at))

    async def _at_once(
        self, at: int, first: Action, second: Action, leave: bool
    ) -> tuple[object, object]:
        engine = self._servers.engines[at]
        engine.may_load.clear()
        one = asyncio.create_task(outcome(first(self._servers)))
        await eventually(lambda: one.done() or engine.waiting > 0)
        waits = not one.done()
        if waits and leave:
            one.cancel()
        before = self._servers.live(at), await self._servers.newest(at)
        two = asyncio.create_task(outcome(second(self._servers)))
        await asyncio.wait({two}, timeout=HEAD_START_SECONDS)
        engine.may_load.set()
        found = (await one, await two)
        if waits:  # what is not loaded yet was not live
            assert before == (self._live(at), self._newest())
        return found

    def _action(self, call: Call) -> Action:
        """The same for servers and model, with what the present state makes of it."""
        args, directory = call.args, self._model.directory
        expected = {}
        if call.method == "begin":
            live = [
                (t, name) for t, (_, adapters) in self._live(call.at).items() for name in adapters
            ]
            models = [*live, ("a", BASE), ("c", "p")]
            self._requests += 1
            args = (*models[args[0] % len(models)], self._requests)
        if call.method == "roll_back":
            args = (args[0], args[1] % (directory.revision(args[0]) + 2))
        if call.method in ("put", "roll_back"):
            present = directory.revision(args[0])
            expected = {"expected": None if call.offset is None else present + call.offset}
        return methodcaller(call.method, call.at, *args, **expected)

    def _look(self) -> None:
        """What may be in memory or on disk as well as not is the model's from here."""
        self._run(self._servers.settle())
        for at, server in enumerate(self._model.servers):
            server.held = self._run(self._servers.held(at))
            server.stored = self._servers.stored(at)

    def _live(self, at: int) -> dict[str, tuple[int, Adapters]]:
        live = self._model.servers[at].live
        return {tenant: (item.revision, item.adapters) for tenant, item in live.items()}

    def _newest(self) -> dict[str, tuple[int, Adapters]]:
        directory = self._model.directory
        return {
            tenant: (directory.revision(tenant), directory.live(tenant))
            for tenant in directory.quotas
        }

    async def _soon_as_the_model(self) -> None:
        expected = [self._expected(at) for at in range(2)]
        with suppress(TimeoutError):
            await eventually(lambda: [self._seen(at) for at in range(2)] == expected, SOON_SECONDS)
        await self._servers.settle()
        for at, server in enumerate(self._model.servers):
            assert self._seen(at) == expected[at]
            held = await self._servers.held(at)
            assert server.needed <= held <= server.pins.keys()
            assert server.needed <= self._servers.stored(at)
        assert await self._servers.newest(0) == self._newest()
        assert await self._servers.registered(0) == self._model.directory.adapters

    def _seen(self, at: int) -> dict[str, object]:
        return {
            "live": self._servers.live(at),
            "lag": self._servers.lag(at),
            "pins": self._servers.pins(at),
            "resolved": {pair: self._servers.resolved(at, *pair) for pair in MODELS},
        }

    def _expected(self, at: int) -> dict[str, object]:
        server, live = self._model.servers[at], self._live(at)
        nothing: tuple[int, Adapters] = (0, {})
        return {
            "live": live,
            "lag": {
                tenant: (live.get(tenant, nothing)[0], revision)
                for tenant, (revision, _) in server.wanted.items()
            },
            "pins": dict(server.pins),
            "resolved": {
                (tenant, name): live.get(tenant, nothing)[1].get(name) for tenant, name in MODELS
            },
        }


async def outcome(call: Awaitable[object]) -> object:
    try:
        return await call
    except RemixError as error:
        return told(error)
    except asyncio.CancelledError:
        return LEFT


def modelled(model: Model, action: Action) -> object:
    try:
        found = action(model)
    except RemixError as error:
        found = told(error)
    model.settle()
    return found


def told(error: RemixError) -> object:
    """What a client learns of a refusal: its kind, of a bad set (422) the names too."""
    if isinstance(error, BadSetError):
        return "bad", frozenset(error.reasons)
    if isinstance(error, UnknownAdapterError):  # deleted while the others were loaded
        return "bad", frozenset(error.adapters)
    return type(error)


def test_the_servers_are_as_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_adapters, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(rooms, "examine", examine_here)
    monkeypatch.setattr(watch, "FIRST_PAUSE_SECONDS", 0.003)
    monkeypatch.setattr(watch, "LAST_PAUSE_SECONDS", 0.003)
    adapters = {UNKNOWN: (tmp_path, "0" * 64)}
    for seed, name in enumerate((*GOOD, BAD, DAMAGED)):
        adapters[name] = (tmp_path / name, write_adapter(tmp_path / name, seed=seed))
    (tmp_path / DAMAGED / TENSOR_FILE).write_bytes(b"damaged")
    with asyncio.Runner() as runner:
        run_state_machine_as_test(
            partial(SwapMachine, runner, adapters),
            settings=settings(
                max_examples=24,
                stateful_step_count=30,
                # Where calls meet depends on the machine, so minutes of shrinking gain little.
                phases=[Phase.reuse, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
