"""Any sequence of changes, any of them left by its caller at any moment, has the directory as it
has a plain model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from copy import deepcopy
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete

from server.tenancy import Directory
from server.tenancy.errors import TenancyError
from server.tenancy.records import Quota
from server.tenancy.snapshot import Snapshot
from server.tenancy.tables import metadata
from tests.unit.tenancy.model import Adapters, Model
from tests.unit.tenancy.moments import Moment
from tests.unit.tenancy.samples import EVERYTHING, digest, record

TENANTS = st.sampled_from(["a", "a", "a", "b"])
ADAPTERS = st.sampled_from(["x", "x", "y", "z"])
SETS = st.dictionaries(st.sampled_from(["p", "q"]), ADAPTERS.map(digest), max_size=2)
QUOTAS = st.builds(Quota, max_concurrent=st.none() | st.integers(1, 2), may_use_base=st.booleans())
CUTS = st.none() | st.integers(1, 14)
"""The moment at which the caller leaves; none for a caller that stays."""
OFFSETS = st.sampled_from([0, 0, 0, None, -1, 1])
"""From the current revision to the one that is expected; none for no expectation."""

Call = Callable[[], Coroutine[Any, Any, Any]]


class DirectoryMachine(RuleBasedStateMachine):
    def __init__(self, runner: asyncio.Runner, directory: Directory) -> None:
        super().__init__()
        self._run = runner.run
        self._directory = directory
        self._model = Model()
        self._secrets: dict[str, str] = {}
        """To key ids."""
        self._snapshot: Snapshot | None = None
        self._run(empty(directory))

    @initialize()
    def begin_with_something(self) -> None:
        for tenant in ("a", "b"):
            self._change(None, "create_tenant", tenant)
        for name in ("x", "y"):
            self._change(None, "add_adapter", record(name))

    @rule(tenant=TENANTS, cut=CUTS)
    def create_tenant(self, tenant: str, cut: int | None) -> None:
        self._change(cut, "create_tenant", tenant)

    @rule(tenant=st.sampled_from(["a", "b", "b", "b"]), cut=CUTS)
    def delete_tenant(self, tenant: str, cut: int | None) -> None:
        self._change(cut, "delete_tenant", tenant)

    @rule(tenant=TENANTS, cut=CUTS)
    def create_key(self, tenant: str, cut: int | None) -> None:
        """The one change that is made twice by calling twice; of a lost answer a key may stay
        whose secret nobody knows."""
        create = partial(self._directory.create_key, tenant, actor="test")
        if cut is not None:
            self._run(cut_off(self._directory, create, cut))
            self._learn_of_keys(tenant)
            self.the_directory_is_as_the_model()
        refusal = refused(deepcopy(self._model).create_key, tenant, "new")
        outcome = self._run(outcome_of(create))
        assert type(outcome) is type(refusal) or refusal is None
        if refusal is None:
            self._model.create_key(tenant, outcome.id)
            self._secrets[outcome.secret] = outcome.id

    @rule(number=st.integers(0, 9), cut=CUTS)
    def revoke_key(self, number: int, cut: int | None) -> None:
        keys = [*self._model.keys, "unknown"]
        self._change(cut, "revoke_key", keys[number % len(keys)])

    @rule(tenant=TENANTS, quota=QUOTAS, cut=CUTS)
    def set_quota(self, tenant: str, quota: Quota, cut: int | None) -> None:
        self._change(cut, "set_quota", tenant, quota)

    @rule(name=ADAPTERS, cut=CUTS)
    def add_adapter(self, name: str, cut: int | None) -> None:
        self._change(cut, "add_adapter", record(name))

    @rule(name=ADAPTERS, cut=CUTS)
    def delete_adapter(self, name: str, cut: int | None) -> None:
        self._change(cut, "delete_adapter", digest(name))

    @rule(tenant=TENANTS, adapters=SETS, offset=OFFSETS, cut=CUTS)
    def put_set(self, tenant: str, adapters: Adapters, offset: int | None, cut: int | None) -> None:
        expected = None if offset is None else self._model.revision(tenant) + offset
        self._change(cut, "put_set", tenant, adapters, expected=expected)

    @rule(tenant=TENANTS, number=st.integers(0, 9), offset=OFFSETS, cut=CUTS)
    def rollback_set(self, tenant: str, number: int, offset: int | None, cut: int | None) -> None:
        """To revisions before the first, before a deletion and after the newest, too."""
        current = self._model.revision(tenant)
        expected = None if offset is None else current + offset
        self._change(cut, "rollback_set", tenant, number % (current + 2), expected=expected)

    @invariant()
    def the_directory_is_as_the_model(self) -> None:
        # From the one held: a change that it does not notice would show.
        self._snapshot = snapshot = self._run(self._directory.snapshot(self._snapshot))
        assert self._run(seen(self._directory, snapshot)) == expected_of(self._model)
        valid = {key: tenant for key, (tenant, revoked) in self._model.keys.items() if not revoked}
        assert sum(map(len, snapshot.keys.values())) == len(valid)
        for secret, key in self._secrets.items():
            assert snapshot.authenticate(secret) == valid.get(key)

    def teardown(self) -> None:
        """What grows is read at the end only."""
        for tenant in self._model.quotas:
            revisions = self._run(self._directory.revisions(tenant, limit=EVERYTHING))
            assert {item.revision: item.adapters for item in revisions} == self._model.sets[tenant]
            keys = self._run(self._directory.keys(tenant))
            assert {key.id: (key.tenant, key.revoked is not None) for key in keys} == {
                key: item for key, item in self._model.keys.items() if item[0] == tenant
            }

    def _change(self, cut: int | None, method: str, *args: object, **kwargs: object) -> None:
        """Calls the directory as the model. A call whose caller leaves has all of its effect or
        none, and can be repeated."""
        call = partial(getattr(self._directory, method), *args, actor="test", **kwargs)
        if cut is not None:
            after = deepcopy(self._model)
            refused(getattr(after, method), *args, **kwargs)
            left = self._run(cut_off(self._directory, call, cut))
            told = self._run(self._directory.audit(limit=EVERYTHING))
            if not left or len(told) == len(after.audit):
                self._model = after
            self.the_directory_is_as_the_model()
        refusal = refused(getattr(self._model, method), *args, **kwargs)
        outcome = self._run(outcome_of(call))
        assert (type(outcome), str(outcome)) == (type(refusal), str(refusal)) or (
            refusal is None and not isinstance(outcome, TenancyError)
        )

    def _learn_of_keys(self, tenant: str) -> None:
        if tenant in self._model.quotas:
            there = {key.id for key in self._run(self._directory.keys(tenant))}
            new = there - set(self._model.keys)
            assert len(new) <= 1
            for key in new:
                self._model.create_key(tenant, key)


async def empty(directory: Directory) -> None:
    async with directory._database.write() as connection:
        for table in reversed(metadata.sorted_tables):
            await connection.execute(delete(table))


async def cut_off(directory: Directory, call: Call, step: int) -> bool:
    """Whether the caller left, after all of what the call still does."""
    calling = asyncio.ensure_future(call())
    with Moment(directory, step, calling.cancel) as moment:
        await asyncio.wait([calling])
    if not calling.cancelled():
        calling.exception()
    async with directory._database.write():
        return moment.came


async def outcome_of(call: Call) -> Any:
    try:
        return await call()
    except TenancyError as error:
        return error


def refused(call: Callable[..., None], *args: object, **kwargs: object) -> TenancyError | None:
    try:
        call(*args, **kwargs)
    except TenancyError as error:
        return error
    return None


async def seen(directory: Directory, snapshot: Snapshot) -> dict[str, object]:
    rows = await directory.audit(limit=EVERYTHING)
    assert snapshot.change == max((row.id for row in rows), default=0)
    return {
        "tenants": {
            tenant: (state.quota, state.set.revision, state.set.adapters)
            for tenant, state in snapshot.tenants.items()
        },
        "adapters": {adapter.digest for adapter in await directory.adapters()},
        "audit": [(row.action, row.tenant) for row in reversed(rows)],
    }


def expected_of(model: Model) -> dict[str, object]:
    return {
        "tenants": {
            tenant: (quota, model.revision(tenant), model.live(tenant))
            for tenant, quota in model.quotas.items()
        },
        "adapters": model.adapters,
        "audit": model.audit,
    }


def test_the_directory_is_as_the_model(url: str) -> None:
    with asyncio.Runner() as runner:
        directory = runner.run(Directory.open(url))
        run_state_machine_as_test(
            partial(DirectoryMachine, runner, directory),
            settings=settings(
                max_examples=25,
                stateful_step_count=30,
                # Where a call ends depends on the machine, so minutes of shrinking gain little.
                phases=[Phase.reuse, Phase.generate],
                suppress_health_check=list(HealthCheck),
            ),
        )
        runner.run(directory.close())
