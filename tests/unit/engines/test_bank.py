"""The adapter bank: slots, pins, eviction and byte budgets, whatever the order of calls."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from remix_runtime.adapter.checkpoint.types import AdapterConfig, Checkpoint, LayerWeights
from remix_runtime.engines.embedded.bank import AdapterBank
from remix_runtime.errors import CapacityError
from remix_runtime.kernels import Batch, MixtureWeights, make_table

D, O = 6, 5  # noqa: E741 - the width of an output
NAMES = ("x.up", "x.down")


def checkpoint(digest: str, n: int = 2, names: tuple[str, ...] = NAMES) -> Checkpoint:
    config = AdapterConfig(
        base_model_name_or_path="tiny",
        num_experts=n,
        top_k=n,
        r=1,
        routing_weight=1.0,
        target_modules=names,
    )
    layer = LayerWeights(
        a_nrD=torch.randn(n, 1, D), b_nOr=torch.randn(n, O, 1), router_nD=torch.randn(n, D)
    )
    return Checkpoint(
        config=config,
        layers=dict.fromkeys(names, layer),
        mixtures=dict.fromkeys(names, config),
        digest=digest,
        num_bytes=0,
    )


def size(n: int = 2, layers: int = len(NAMES)) -> int:
    """What the kernels' layout takes."""
    layer = next(iter(checkpoint("x", n).layers.values()))
    return layers * MixtureWeights.from_layer(layer, n, 1.0).num_bytes


def make(slots: int = 2, device: int = 10**6, host: int = 10**6) -> AdapterBank:
    tables = {name: make_table(slots, D, O) for name in NAMES}
    return AdapterBank(tables, num_slots=slots, device_bytes=device, host_bytes=host)


def effect(bank: AdapterBank, slot: int, name: str, x_TD: torch.Tensor) -> torch.Tensor:
    y_TO = torch.zeros(len(x_TD), O)
    bank._tables[name].add(y_TO, x_TD, Batch([(0, len(x_TD), slot)]))
    return y_TO


def expected(item: Checkpoint, x_TD: torch.Tensor) -> torch.Tensor:
    """All experts are on: k = n."""
    layer = next(iter(item.layers.values()))
    return torch.einsum("TD,nrD,nOr->TO", x_TD, layer.a_nrD, layer.b_nOr)


def test_the_slot_holds_the_adapter_and_nothing_after_removal() -> None:
    bank, x_TD = make(), torch.randn(3, D)
    items = [checkpoint("a"), checkpoint("b", n=4)]
    for item in items:
        bank.add(bank.prepare(item))
    for item in items:
        slot = bank.pin_slot(item.digest)
        assert slot is not None
        torch.testing.assert_close(effect(bank, slot, "x.up", x_TD), expected(item, x_TD))
        bank.unpin_slot(item.digest)
        bank.remove(item.digest)
        assert not effect(bank, slot, "x.up", x_TD).any()
    assert bank.host_bytes_used == bank.device_bytes_used == bank.slots_used == 0


def test_a_reused_slot_does_not_keep_layers_of_its_last_adapter() -> None:
    bank, x_TD = make(slots=1), torch.randn(2, D)
    bank.add(bank.prepare(checkpoint("both")))
    bank.add(bank.prepare(checkpoint("up only", names=("x.up",))))
    assert bank.pin_slot("both") == 0
    bank.unpin_slot("both")
    assert bank.pin_slot("up only") == 0
    assert effect(bank, 0, "x.up", x_TD).any()
    assert not effect(bank, 0, "x.down", x_TD).any()


def test_the_adapter_unpinned_longest_ago_leaves() -> None:
    bank = make(slots=2)
    for name in "abc":
        bank.add(bank.prepare(checkpoint(name)))
    first = {name: bank.pin_slot(name) for name in "ab"}
    bank.unpin_slot("b")
    bank.unpin_slot("a")
    assert bank.pin_slot("c") == first["b"]
    assert bank.pin_slot("a") == first["a"]


def test_pinned_adapters_stay() -> None:
    bank = make(slots=1)
    bank.add(bank.prepare(checkpoint("a")))
    bank.add(bank.prepare(checkpoint("b")))
    assert bank.pin_slot("a") == 0
    assert bank.pin_slot("a") == 0
    bank.unpin_slot("a")
    assert bank.pin_slot("b") is None
    bank.unpin_slot("a")
    assert bank.pin_slot("b") == 0


def test_budgets_refuse_what_can_never_fit() -> None:
    small = make(device=size() - 1)
    adapter = small.prepare(checkpoint("a"))
    with pytest.raises(CapacityError, match="adapter_bytes"):
        small.add(adapter)
    assert "a" not in small
    with pytest.raises(CapacityError, match="host_adapter_bytes"):
        make(host=size() - 1).add(adapter)


def test_the_copy_unpinned_longest_ago_leaves_host_memory_and_can_come_back() -> None:
    bank, x_TD = make(host=2 * size()), torch.randn(2, D)
    items = {name: checkpoint(name) for name in "abc"}
    for name in "ab":
        assert bank.add(bank.prepare(items[name]))
    slot = bank.pin_slot("b")
    assert slot is not None
    bank.unpin_slot("b")
    bank.pin("a")
    bank.unpin("a")
    assert bank.add(bank.prepare(items["c"]))
    assert not bank.is_ready("b")
    assert not effect(bank, slot, "x.up", x_TD).any()
    assert "b" in bank
    assert bank.reserve("b")
    assert [bank.is_ready(name) for name in "abc"] == [False, False, True]
    assert bank.host_bytes_used == 2 * size()
    bank.fill(bank.prepare(items["b"]))
    slot = bank.pin_slot("b")
    assert slot is not None
    torch.testing.assert_close(effect(bank, slot, "x.up", x_TD), expected(items["b"], x_TD))


def test_copies_in_use_stay_and_what_is_set_aside_can_be_given_back() -> None:
    bank = make(host=size())
    assert bank.add(bank.prepare(checkpoint("a")))
    bank.pin("a")
    assert not bank.add(bank.prepare(checkpoint("b"))), "known, but there is no room"
    assert not bank.reserve("b")
    bank.unpin("a")
    assert bank.reserve("b")
    bank.cancel("b")
    assert bank.host_bytes_used == 0
    bank.fill(bank.prepare(checkpoint("b")))
    assert not bank.is_ready("b"), "nothing was set aside"
    bank.remove("b")
    bank.fill(bank.prepare(checkpoint("b")))
    assert "b" not in bank


def test_a_slot_is_not_taken_from_adapters_to_keep() -> None:
    bank = make(slots=2)
    for name in "abc":
        bank.add(bank.prepare(checkpoint(name)))
    for name in "ab":
        bank.pin_slot(name)
        bank.unpin_slot(name)
    assert bank.pin_slot("c", keep={"a", "b"}) is None
    assert bank.residents == ("a", "b")
    assert bank.pin_slot("c", keep={"a"}) is not None
    assert set(bank.residents) == {"a", "c"}


class BankMachine(RuleBasedStateMachine):
    """Random calls against a plain model of who is pinned."""

    def __init__(self) -> None:
        super().__init__()
        self.device, self.host = 3 * size(2), 6 * size(2)
        self.bank = make(slots=3, device=self.device, host=self.host)
        self.sizes: dict[str, int] = {}
        self.pins: dict[str, int] = {}
        self.slots: dict[str, int] = {}

    @rule(name=st.sampled_from("abcdef"), n=st.sampled_from([1, 2, 4]))
    def add(self, name: str, n: int) -> None:
        if name in self.pins:
            return
        try:
            ready = self.bank.add(self.bank.prepare(checkpoint(name, n)))
        except CapacityError:
            assert size(n) > self.device
        else:
            self.pins[name], self.sizes[name] = 0, n
            pinned = sum(size(self.sizes[other]) for other, p in self.pins.items() if p)
            assert ready == (pinned + size(n) <= self.host)

    @rule(name=st.sampled_from("abcdef"))
    def read_again(self, name: str) -> None:
        if name in self.pins and not self.bank.is_ready(name) and self.bank.reserve(name):
            self.bank.fill(self.bank.prepare(checkpoint(name, self.sizes[name])))
            assert self.bank.is_ready(name)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def pin_slot(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.pins)))
        if not self.bank.is_ready(name):
            assert not self.pins[name], "in use, but dropped"
            return
        slot = self.bank.pin_slot(name)
        if slot is not None:
            if self.pins[name]:
                assert slot == self.slots[name], "a pinned adapter moved"
            self.pins[name] += 1
            self.slots[name] = slot
        else:
            assert any(self.pins.values()), "nothing is pinned, so it must fit"

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin_slot(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, p in self.pins.items() if p)))
        self.bank.unpin_slot(name)
        self.pins[name] -= 1

    @rule(name=st.sampled_from("abcdef"))
    def remove(self, name: str) -> None:
        if self.pins.get(name, 0) == 0:
            self.bank.remove(name)
            self.pins.pop(name, None)

    @invariant()
    def budgets_hold_and_pinned_slots_differ(self) -> None:
        assert self.bank.device_bytes_used <= self.device
        ready = [name for name in self.pins if self.bank.is_ready(name)]
        held_bytes = sum(size(self.sizes[name]) for name in ready)
        assert held_bytes == self.bank.host_bytes_used <= self.host
        assert self.bank.host_count == len(ready)
        held = [self.slots[name] for name, pins in self.pins.items() if pins]
        assert len(held) == len(set(held)) <= self.bank.slots_used <= 3


TestBank = BankMachine.TestCase
TestBank.settings = settings(max_examples=60, stateful_step_count=40)
