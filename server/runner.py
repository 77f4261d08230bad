"""Runs the app under uvicorn, with a SIGTERM that drains.

First signal: /ready says no, every answer closes its connection. After `drain_delay_seconds` new
requests get 503; those whose head had come before go on for at most `drain_seconds`. What is left
then ends with an error that its client can read, and the process with exit code 0. A second signal
ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from remix_runtime.errors import ConfigError
from remix_runtime.watch import TaskError, Watch, Watched
from server.http.connection import BoundedConnection, ConnectionLimits, Door
from server.services import Services
from server.settings import ServerSettings

log = logging.getLogger(__name__)

ADMIN_TASK = "admin"
"""Name of the watched task."""
ADMIN_SIGN_SECONDS = 60.0
"""Seconds of silence after which the admin API's server counts as hanging."""
_BEAT_SECONDS = 10

_OPEN_FILES = 65_536

_OTHER_FILES = 128
"""Of the files that may be open, those that are not a client's connection."""

_AT_ONCE = 16
"""Connections that are taken in one turn of the event loop."""

_WAITING = 1024
"""Connections that the system holds until they are taken."""

_CLOSE_SECONDS = 2
"""Seconds for connections that do not close by themselves after the drain."""

_KEEP_ALIVE_SECONDS = 75
"""Seconds that an idle connection stays open: longer than the usual 60 of load balancers, which
should be the first to close."""


def bind(host: str, port: int) -> socket.socket:
    """Binds a socket that does not listen yet. Raises `ConfigError`.

    Bound before the model is loaded: a port in use should be known at once.
    """
    listener: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except UnicodeError as error:  # a part of the name is empty or too long
        raise ConfigError(f"host: found {host[:100]!r}, expected a name or address") from error
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return listener


async def run(
    app: FastAPI,
    settings: ServerSettings,
    listener: socket.socket,
    *,
    on_ready: Callable[[Services, str], None],
    admin: tuple[FastAPI, socket.socket] | None = None,
) -> None:
    """Serves until a signal has drained the server. Raises `RemixError` if it cannot start.

    `on_ready` is called with the URL once requests can come. `admin` is an app that is served
    beside, within the lifespan of `app`, and until it has drained.
    """
    limits = _limits(settings, _open_files(), servers=1 if admin is None else 2)
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        server = _DrainingServer(
            _config(app, settings, limits),
            services,
            lambda: on_ready(services, url_of(listener)),
        )
        if admin is None:
            await server.serve(sockets=[listener])
            return
        beside = AdminServer(*admin, settings, limits=limits)
        beside.start(services.watch)
        try:
            await server.serve(sockets=[listener])
        finally:
            await beside.stop()


def _open_files() -> int:
    """How many files may be open. Each connection holds one, and many shells allow 1,024: raised as
    far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then there are fewer
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else soft


@contextlib.contextmanager
def without_long_collections() -> Iterator[Callable[[], None]]:
    """Yields what to call once everything is loaded: from then on the garbage collector leaves out
    what is there. It takes half a second to look at all of it, and no request moves meanwhile."""

    def settle() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield settle
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def with_short_waits() -> Iterator[None]:
    """A thread that computes in Python lets another one go on after half a millisecond, not five.
    The engine and the event loop ask for that many times in a step, and wait as long each time."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass(frozen=True, slots=True)
class _Limits:
    connections: int
    at_once: int
    """So many may be open beyond those that may stay."""


def _limits(settings: ServerSettings, open_files: int, *, servers: int) -> _Limits:
    """Of each server of the process: they share what may be open."""
    share = open_files // servers
    at_once = min(_AT_ONCE, share // 4)
    left = share - _OTHER_FILES - at_once
    return _Limits(max(1, min(settings.max_connections, left)), at_once)


def _config(app: FastAPI, settings: ServerSettings, limits: _Limits) -> uvicorn.Config:
    door = Door(ConnectionLimits(connections=limits.connections))
    protocol: Any = partial(BoundedConnection, door=door)  # uvicorn only calls it
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",  # there are none, whatever libraries are installed
        backlog=limits.at_once,  # what asyncio takes in a turn; see `_Server`
        lifespan="off",  # entered by `run`, so that its errors reach the command line
        log_config=None,  # its lines look like ours
        log_level=settings.log_level,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_CLOSE_SECONDS,
    )


class AdminServer:
    """Serves the admin app beside the other one, as a watched task. Closes its listener."""

    def __init__(
        self,
        app: FastAPI,
        listener: socket.socket,
        settings: ServerSettings,
        *,
        limits: _Limits,
    ) -> None:
        self._app = app
        self._listener = listener
        self._settings = settings
        self._limits = limits
        self._server: _SilentServer | None = None
        self._watched: Watched | None = None
        self._stopping = False

    def start(self, watch: Watch) -> None:
        self._watched = watch.start(
            ADMIN_TASK,
            self._serve,
            what="serving the admin API",
            due_seconds=ADMIN_SIGN_SECONDS,
            ends=True,
        )

    async def stop(self) -> None:
        """Ends as uvicorn does: with what runs, but not for long."""
        self._stopping = True
        if self._server is not None:
            self._server.should_exit = True
        if self._watched is not None:
            await self._watched.finish()
        self._listener.close()

    async def _serve(self, task: Watched) -> None:
        if self._stopping:
            return
        config = _config(self._app, self._settings, self._limits)

        async def beat() -> None:
            task.beat()

        config.callback_notify = beat
        config.timeout_notify = _BEAT_SECONDS
        self._server = _SilentServer(config)
        # A server closes its sockets when it ends, and the next one needs the listener.
        listener = self._listener.dup()
        try:
            await self._server.serve(sockets=[listener])
        finally:
            # uvicorn leaves these open when it is cancelled, and has none if it never started.
            for server in getattr(self._server, "servers", ()):
                server.close()
            listener.close()
        if not self._stopping:
            raise TaskError("it ended")


class _Server(uvicorn.Server):
    """A uvicorn server that many may connect to at once: asyncio lets the system hold as many as it
    takes in one turn of the event loop, and those should be few."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(_WAITING)


class _SilentServer(_Server):
    """A uvicorn server that leaves signals to the one it stands beside."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _DrainingServer(_Server):
    """A uvicorn server that keeps answering while it drains."""

    def __init__(
        self, config: uvicorn.Config, services: Services, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._services = services
        self._on_ready = on_ready
        self._drain: asyncio.Task[None] | None = None
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Unlike uvicorn's own, the signal is not raised again afterwards: the exit code is 0.
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._on_signal)

        before = {n: signal.signal(n, handle) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self) -> None:
        if self._drain is None:
            self._drain = asyncio.get_running_loop().create_task(self._drain_and_exit())
        else:
            self._hurry.set()

    async def _drain_and_exit(self) -> None:
        settings, gate = self._services.settings, self._services.gate
        gate.is_leaving = True
        try:
            if settings.drain_delay_seconds:
                log.info("not ready; the drain begins in %g s", settings.drain_delay_seconds)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(settings.drain_delay_seconds):
                        await self._hurry.wait()
            seconds = settings.drain_seconds
            log.info("draining: new requests are refused, running ones have %g s", seconds)
            gate.closed = True
            idle = asyncio.ensure_future(gate.wait_idle())
            hurry = asyncio.ensure_future(self._hurry.wait())
            await asyncio.wait({idle, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            for waiting in (idle, hurry):
                waiting.cancel()
            # Ends what is left with an error that its clients can still read.
            await self._services.engine.stop()
        finally:
            self.should_exit = True


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
