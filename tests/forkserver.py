"""Processes that are killed: forked from one server, which has imported what they run, so that a
round costs no start of Python and PyTorch. A test process has one such server."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
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
    """One whose examinations are forked from the same server: else it would start one of its own,
    which takes seconds to import PyTorch."""
    forkserver.ensure_running()
    address = forkserver._forkserver._forkserver_address  # type: ignore[attr-defined]
    return context.Process(target=_with_server, args=(address, target, args))


def _with_server(address: str, target: Callable[..., object], args: tuple[Any, ...]) -> None:
    server: Any = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = address
    server.ensure_running = lambda: None
    target(*args)
