"""Packages that only some features need are extras; a missing one is an error of one line."""

from __future__ import annotations

from importlib.util import find_spec

from remix_runtime.errors import ConfigError


def require_extra(feature: str, extra: str, *packages: str) -> None:
    """Raises `ConfigError` if a package that `feature` imports, and `extra` brings, is missing.

    Asked before a feature starts: not after a download or hours of training.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing_extra(feature, extra, package)


def missing_extra(feature: str, extra: str, package: str) -> ConfigError:
    """The error that names the missing package and the command that installs it."""
    return ConfigError(f"{feature}: {package} is not installed; pip install 'remix-serve[{extra}]'")
