"""Imports of large libraries, without the collector's looks through what they make."""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def large_imports() -> Iterator[None]:
    """For a block that imports PyTorch and transformers. They make a million objects that stay for
    the life of the process: to look for garbage among them, again and again as they are made,
    takes a quarter of the time. From then on the collector leaves them out, until the process ends.

    Does nothing where PyTorch is there already: what others made is theirs to collect.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # or libraries take what is left for leaks, and say so
