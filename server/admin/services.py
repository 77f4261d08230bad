"""What the admin API works on."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request
from starlette.types import ASGIApp

from remix_runtime.contracts import Engine
from remix_runtime.fairness.worker import FairWorker
from server.live.adapters import LiveAdapters
from server.live.bodies import Bodies
from server.live.canary_keeper import CanaryKeeper
from server.live.folders import Folders
from server.live.follower import Follower
from server.live.routing import RoutingMonitor
from server.live.sets import LiveSets
from server.live.swap import Swaps
from server.live.worker import make_worker
from server.metrics import Metrics
from server.settings import ServerSettings
from server.store import AdapterStore
from server.tenancy import Directory

ACTOR = "admin"
"""Who the audit says did it: there is one admin key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminServices:
    """`app.state.services` of the admin app, while the data app's lifespan is open."""

    directory: Directory
    store: AdapterStore
    swaps: Swaps
    canaries: CanaryKeeper
    folders: Folders
    follower: Follower
    adapters: LiveAdapters
    sets: LiveSets
    engine: Engine
    metrics: Metrics
    routing: RoutingMonitor
    settings: ServerSettings
    bodies: Bodies
    data_app: ASGIApp
    """The API for tenants, to ask their models as they would."""
    worker: FairWorker = field(default_factory=make_worker)


def admin_services(request: Request) -> AdminServices:
    services: AdminServices = request.app.state.services
    return services
