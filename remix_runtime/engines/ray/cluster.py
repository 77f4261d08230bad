"""Ray as the engine uses it: found or started, the replicas deployed or joined, calls to them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from remix_runtime.contracts import GenerationRequest
from remix_runtime.engine_state import AdapterState
from remix_runtime.engines.ray.bundle import Bundle, pack
from remix_runtime.engines.ray.config import RayConfig
from remix_runtime.engines.ray.messages import Description, Loaded, Message, Report, Settings
from remix_runtime.errors import ConfigError, RemixError, ReplicaLostError
from remix_runtime.threads import available_cores

log = logging.getLogger(__name__)

START_SECONDS = 1800.0
"""Seconds that replicas have to start: a cluster may have to start nodes first."""
ANSWER_SECONDS = 60.0
"""Seconds that replicas have for an answer that needs no computation."""
DRAIN_SECONDS = 3600.0
"""Seconds that the requests of a replica have to end when scaling takes it away."""
START_TRIES = 5
"""Ray gives itself 30 seconds to start on a machine, which a busy one exceeds."""
OBJECT_STORE_BYTES = 512 << 20
"""Memory for adapters on their way, on a machine where Ray is started for this server alone."""

_QUIET: Mapping[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
_DEPLOYMENT = "replica"
_ERROR = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", re.MULTILINE)


class Cluster:
    """Replicas of one application. `start` and `stop` come first and last."""

    def __init__(self, config: RayConfig, settings: Settings, *, places: int, gpus: float) -> None:
        self._config = config
        self._settings = settings
        self._places = places
        self._gpus = gpus
        self._is_ours = False
        """Whether this process is connected to Ray by this object."""
        self._handle: Any = None

    # -- life -----------------------------------------------------------------------------------

    async def start(self) -> Description:
        """Connects to Ray, or starts it; deploys the replicas, or joins those that run. Raises
        `ConfigError`."""
        return await asyncio.to_thread(self._start)

    async def stop(self) -> None:
        """Leaves the cluster, whose replicas stay for other servers; Ray that was started for this
        server alone ends with them."""
        await asyncio.to_thread(self._stop)

    def _start(self) -> Description:
        self._connect()
        from ray import serve

        try:
            serve.start(proxy_location="Disabled", logging_config=_quiet())
            self._handle = self._deployed()
            return self._check(self._wait_description())
        except BaseException:
            self._stop()
            raise

    def _connect(self) -> None:
        if "ray" in sys.modules:
            import ray

            if ray.is_initialized():  # by the program that this engine is a part of
                return
        address = self._config.ray_address
        if address is None:
            start_here(num_cpus=max(1, round(self._cpus * self._config.most_replicas)))
        else:
            import ray

            try:
                ray.init(address=address, **_QUIET)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"ray_address: {address}: {error}") from error
        self._is_ours = True
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.WARNING)

    @property
    def _cpus(self) -> float:
        given = self._config.replica_cpus
        if given is not None:
            return given
        if self._config.ray_address is not None:
            return 1.0
        return float(max(1, available_cores() // self._config.most_replicas))

    def _deployed(self) -> Any:
        from ray import serve

        name = self._config.ray_app
        app = serve.status().applications.get(name)
        if app is not None and app.status in ("RUNNING", "DEPLOYING", "UNHEALTHY"):
            log.info("joining the replicas of the application %s", name)
            return serve.get_app_handle(name)
        try:
            return serve.run(self._application(), name=name, route_prefix=None)
        except RuntimeError as error:
            app = serve.status().applications.get(name)
            told = "" if app is None else app.deployments[_DEPLOYMENT].message
            log.error("%s: %s", error, told)
            serve.delete(name)
            raise ConfigError(f"the replicas do not start: {reason_in(told)}") from None

    def _application(self) -> Any:
        from ray import serve

        from remix_runtime.engines.ray.replica import Replica
        from remix_runtime.engines.ray.router import AdapterRouter

        config = self._config
        threads = str(max(1, int(self._cpus)))
        scaling: dict[str, Any] = {"num_replicas": config.replicas}
        if config.most_replicas > config.replicas:
            scaling = {
                "autoscaling_config": {
                    "min_replicas": config.replicas,
                    "max_replicas": config.most_replicas,
                    "target_ongoing_requests": config.target_requests or 0.75 * self._places,
                    "upscale_delay_s": config.scale_up_seconds,
                    "downscale_delay_s": config.scale_down_seconds,
                    "metrics_interval_s": 1.0,
                    "look_back_period_s": 5.0,
                }
            }
        deployment = serve.deployment(
            Replica,
            name=_DEPLOYMENT,
            ray_actor_options={
                "num_cpus": self._cpus,
                "num_gpus": self._gpus,
                "runtime_env": {
                    "env_vars": {
                        "OMP_NUM_THREADS": threads,
                        "MKL_NUM_THREADS": threads,
                        "OMP_WAIT_POLICY": "PASSIVE",
                    }
                },
            },
            # Above what servers send on purpose: none is refused for one that is about to end.
            max_ongoing_requests=2 * self._places + 2,
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=DRAIN_SECONDS,
            health_check_period_s=2.0,
            logging_config=_quiet(),
            request_router_config={
                "request_router_class": AdapterRouter,
                "initial_backoff_s": 0.01,
                "max_backoff_s": 0.1,
            },
            **scaling,
        )
        return deployment.bind(self._settings)

    def _wait_description(self) -> Description:
        """Of the first replica that answers."""
        until = time.monotonic() + START_SECONDS
        while True:
            with suppress(TimeoutError):
                found = self._handle.describe.remote().result(timeout_s=10.0)
                assert isinstance(found, Description)
                return found
            if time.monotonic() > until:
                raise ConfigError(f"no replica has started in {START_SECONDS:g} s")

    def _check(self, found: Description) -> Description:
        """Refuses replicas that were made from other settings. Raises `ConfigError`."""
        theirs, ours = found.settings, self._settings
        differing = [
            f.name for f in fields(Settings) if getattr(theirs, f.name) != getattr(ours, f.name)
        ]
        if differing == ["options"]:
            names = theirs.options.keys() | ours.options.keys()
            differing = [n for n in sorted(names) if theirs.options.get(n) != ours.options.get(n)]
        if differing:
            raise ConfigError(
                f"ray_app: {self._config.ray_app} runs with other settings "
                f"({', '.join(differing)}); give this server's settings another --ray-app, or end "
                "that application first"
            )
        return found

    def _stop(self) -> None:
        import ray
        from ray import serve

        self._handle = None
        if not self._is_ours:
            return
        self._is_ours = False
        if self._config.ray_address is None:
            with suppress(Exception):  # whatever fails there, Ray ends
                serve.delete(self._config.ray_app)
                serve.shutdown()
        ray.shutdown()

    # -- calls ----------------------------------------------------------------------------------

    async def messages(self, request: GenerationRequest) -> AsyncGenerator[Message, None]:
        """What the request's replica says. Raises `ReplicaLostError` where it ended before the
        request."""
        handle = self._handle.options(
            stream=True, method_name="generate", multiplexed_model_id=request.digest or ""
        )
        response, has_ended = handle.remote(request), False
        try:
            async for message in response:
                yield message
            has_ended = True
        except _lost() as error:
            log.warning("a replica was lost under request %s: %s", request.request_id, _line(error))
            raise ReplicaLostError("the replica that computed the request ended") from error
        finally:
            if not has_ended:
                response.cancel()

    async def pack(self, folder: Path) -> Bundle:
        """The bytes of an adapter for a replica. Raises `CheckpointFormatError`."""
        import ray

        return await asyncio.to_thread(pack, folder, ray.put)

    async def load(self, bundle: Bundle, digest: str | None, shown: str) -> Loaded:
        """Has a replica validate and load an adapter. Raises `CheckpointError`, `CapacityError`."""
        handle = self._handle.options(method_name="load", multiplexed_model_id=digest or "")
        for is_last in (False, True):
            try:
                loaded = await handle.remote(bundle, digest, shown)
            except _lost() as error:
                if is_last:
                    raise ReplicaLostError("the replica that loaded the adapter ended") from error
                continue
            if isinstance(loaded, RemixError):
                raise loaded
            assert isinstance(loaded, Loaded)
            return loaded
        raise AssertionError

    async def deliver(self, replica: str, digest: str, bundle: Bundle) -> None:
        await self._all("deliver", replica, digest, bundle)

    async def drop(self, digest: str) -> list[Report]:
        return await self._all("drop", digest)

    async def abort(self, request_id: str) -> None:
        await self._all("abort", request_id)

    async def reports(self) -> list[Report]:
        return await self._all("report")

    async def states(self) -> list[AdapterState]:
        return [state for states in await self._all("states") for state in states]

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        """What all replicas answer; of those that do not, nothing."""
        from ray.serve.exceptions import DeploymentUnavailableError

        if self._handle is None:
            return []
        try:
            found = await self._handle.broadcast(method, *arguments).results_async(
                timeout_s=ANSWER_SECONDS, return_exceptions=True
            )
        except (DeploymentUnavailableError, TimeoutError):
            return []
        for error in found:
            if isinstance(error, BaseException):
                log.info("a replica did not answer %s: %s", method, _line(error))
        return [answer for answer in found if not isinstance(answer, BaseException)]


def reason_in(told: str) -> str:
    """The error in the traceback that Ray tells of."""
    found = _ERROR.findall(told)
    return found[-1][1] if found else "see the log"


def start_here(num_cpus: int, **more: Any) -> None:
    """Starts Ray on this machine, for this process and nobody else. It listens to this machine, and
    to callers with a token that only its own processes have. Raises `ConfigError`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Read when Ray is imported: without it all of Ray's processes listen to every machine.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # Else Ray writes one into the home folder: images have a read-only one, and with it there
    # `ray start` asks for it ever after, and drivers with an address do not send it.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    for is_last in (*[False] * (START_TRIES - 1), True):
        try:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **_QUIET,
                **more,
            )
        except Exception as error:  # Ray raises no type of its own
            ray.shutdown()
            if is_last:
                raise ConfigError(f"Ray does not start on this machine: {_line(error)}") from error
        else:
            return


def _lost() -> tuple[type[BaseException], ...]:
    """What Ray raises where a replica's process or machine has ended."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    return RayError, RayServeException


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def _quiet() -> dict[str, Any]:
    return {"log_level": "WARNING", "enable_access_log": False}
