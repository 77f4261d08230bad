"""Ray Serve's routing of requests to replicas, by the placement of the server that sends them.

Ray pickles this module and makes the router in every process that has a handle of the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from remix_runtime.contracts import GenerationRequest
from remix_runtime.engines.ray.placement import placement_of


class AdapterRouter(RequestRouter):  # type: ignore[misc] # Ray has no types here
    """See `Placement`."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._tell_replicas()

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._tell_replicas()

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [list(candidate_replicas)]
        # Between two tries, not within one: Ray waits a little longer each time.
        pending_request.routing_context.should_backoff = True
        by_name = {_name(replica.replica_id): replica for replica in candidate_replicas}
        cache = self.replica_queue_len_cache
        order = placement_of(self.app_name).choose(
            list(by_name),
            queued={name: cache.get(r.replica_id) or 0 for name, r in by_name.items()},
            **_asks_for(pending_request),
        )
        return [[by_name[name]] for name in order]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        asked = _asks_for(pending_request)
        placement_of(self.app_name).taken(_name(replica_id), **asked)

    def _tell_replicas(self) -> None:
        placement_of(self.app_name).set_replicas([_name(r) for r in self.curr_replicas])


def _name(replica_id: ReplicaID) -> str:
    return str(replica_id.unique_id)


def _asks_for(pending: PendingRequest) -> dict[str, str | None]:
    """The adapter of a call, and the id of a request, which other calls have none of."""
    first: Sequence[Any] = pending.args[:1]
    request_id = first[0].request_id if first and isinstance(first[0], GenerationRequest) else None
    return {"digest": pending.metadata.multiplexed_model_id or None, "request_id": request_id}
