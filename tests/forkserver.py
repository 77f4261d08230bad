"""Processes that are killed: forked from one server, which has imported what they run, so that a
round costs no start of Python and PyTorch. A test process has one such server."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import arbitrary_address
from multiprocessing.context import ForkServerProcess
from typing import Any

import remix_runtime.adapter.examination  # has a list of its own, and this one comes later

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    [
        "pytest",
        remix_runtime.adapter.examination.__name__,
        "tests.unit.live.crash",
        "tests.unit.store.crash",
        "tests.unit.tenancy.processes",
        "tests.unit.training.killed",
    ]
)


def process(target: Callable[..., object], *args: Any) -> ForkServerProcess:
    """One that has a fork server of its own for its examinations, forked from it: a new one would
    take seconds to import PyTorch, and the one of all would end with a client that is killed while
    it asks."""
    # In a folder of this process, which takes it away: one that is killed would not.
    address = arbitrary_address("AF_UNIX")
    return context.Process(target=_with_server, args=(address, target, args))


def _with_server(address: str, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        dies_with_me, alive = os.pipe()
        if os.fork() == 0:
            try:
                os.close(alive)
                forkserver.main(listener.fileno(), dies_with_me, [])
            finally:
                os._exit(0)
        os.close(dies_with_me)
    server._forkserver_address, server._forkserver_alive_fd = address, alive
    server.ensure_running = lambda: None
    target(*args)
