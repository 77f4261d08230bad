"""Processes that are killed: forked from one server, which has imported what they run, so that a
round costs no start of Python and PyTorch. A test process has one such server."""

from __future__ import annotations

import multiprocessing

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
