"""Which replica gets a request, by what a server knows of them."""

from __future__ import annotations

import itertools

from remix_runtime.engines.ray.placement import Placement

A, B, C = "replica-a", "replica-b", "replica-c"
_ids = itertools.count()


class Replicas:
    """A placement whose requests run until they are ended."""

    def __init__(self, *names: str, places: int = 2, adapters: int = 2) -> None:
        self.names = names
        self.changes = 0
        self.placement = Placement(places=places, adapters=adapters, on_change=self._changed)
        self.placement.set_replicas(names)

    def _changed(self) -> None:
        self.changes += 1

    def send(self, digest: str | None = None, **queued: int) -> tuple[str, str]:
        """The replica that is asked first, and the request's id."""
        request_id = str(next(_ids))
        self.placement.send(request_id)
        order = self.placement.choose(
            self.names, digest=digest, request_id=request_id, queued=queued
        )
        assert sorted(order) == sorted(self.names)
        return order[0], request_id

    def ended(self, digest: str | None = None) -> str:
        replica, request_id = self.send(digest)
        self.placement.release(request_id)
        return replica


def test_requests_for_the_base_go_where_the_fewest_are() -> None:
    replicas = Replicas(A, B)
    (first, one), (second, _) = replicas.send(), replicas.send()
    assert {first, second} == {A, B}
    replicas.placement.release(one)
    assert replicas.send()[0] == first


def test_what_other_servers_sent_decides_among_equals() -> None:
    assert Replicas(A, B).send(**{A: 3, B: 1})[0] == B


def test_an_adapter_is_found_where_it_is_until_that_replica_is_full() -> None:
    replicas = Replicas(A, B, places=2)
    home, first = replicas.send("x")
    other = A if home == B else B
    assert replicas.send("x")[0] == home
    assert replicas.send("x")[0] == other  # the home has no place
    assert replicas.send("x")[0] == other  # which has the adapter too, and fewer requests
    replicas.placement.release(first)
    assert replicas.send("x")[0] == home
    assert replicas.send("x")[0] in (A, B)  # all are full: one that has it


def test_a_full_home_is_kept_where_no_other_replica_has_a_place() -> None:
    replicas = Replicas(A, B, places=1, adapters=4)
    home, _ = replicas.send("x")
    assert replicas.send()[0] != home
    assert [replicas.send("x")[0] for _ in range(3)] == [home] * 3


def test_new_adapters_go_where_the_fewest_are_and_then_where_one_was_unused_the_longest() -> None:
    replicas = Replicas(A, B, adapters=2)
    homes = {digest: replicas.ended(digest) for digest in "wxyz"}
    assert sorted(homes.values()) == [A, A, B, B]
    assert replicas.ended("w") == homes["w"]  # used again: now x is the oldest
    assert replicas.ended("new") == homes["x"]
    assert replicas.ended("y") == homes["y"]
    assert replicas.ended("new") == homes["x"]


def test_what_a_replica_says_counts_but_for_what_is_on_its_way() -> None:
    replicas = Replicas(A, B, adapters=3)
    home, coming = replicas.send("coming")
    replicas.placement.set_adapters(home, ["told"])
    assert replicas.ended("told") == home
    assert replicas.ended("coming") == home
    replicas.placement.release(coming)
    replicas.placement.set_adapters(home, [])
    assert replicas.ended("other") == A
    replicas.placement.set_adapters(C, ["lost"])  # no replica of ours
    assert replicas.ended("lost") in (A, B)


def test_a_replica_that_took_the_request_of_another_has_its_adapter_and_its_load() -> None:
    replicas = Replicas(A, B, places=1)
    chosen, request_id = replicas.send("x")
    other = A if chosen == B else B
    replicas.placement.taken(other, digest="x", request_id=request_id)
    assert replicas.send()[0] == chosen
    replicas.placement.release(request_id)
    assert replicas.send()[0] == other


def test_a_request_that_has_ended_counts_no_more_whatever_comes_late() -> None:
    replicas = Replicas(A, B)
    _, request_id = replicas.send()
    replicas.placement.release(request_id)
    for name in (A, A, A):
        replicas.placement.taken(name, digest=None, request_id=request_id)
    assert replicas.send()[0] == A


def test_replicas_that_come_and_go_are_told_once() -> None:
    replicas = Replicas(A, B)
    replicas.placement.set_replicas([B, A])
    assert replicas.changes == 1
    home = replicas.ended("x")
    replicas.placement.set_replicas([A if home == B else B])
    assert replicas.changes == 2
    assert replicas.placement.replicas == {A if home == B else B}
    replicas.placement.set_replicas([A, B])
    replicas.placement.set_adapters(A, ["y"])
    assert replicas.ended("x") == B  # what the one that was gone had is forgotten


def test_a_dropped_adapter_has_no_home() -> None:
    replicas = Replicas(A, B)
    assert (replicas.ended("x"), replicas.ended("y")) == (A, B)
    replicas.placement.forget("x")
    assert replicas.ended("z") == A
