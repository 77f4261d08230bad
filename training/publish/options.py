"""The options of a publication, as `remix publish` and `remix train --publish` have them."""

from __future__ import annotations

from typing import Any

import typer

from remix_runtime.errors import ConfigError


def margin(name: str) -> Any:
    text = "Nats per token by which it must beat the live adapter and the base, at 95 % certainty."
    return typer.Option(name, min=0.0, help=text)


def share(name: str) -> Any:
    return typer.Option(name, min=1e-6, max=1.0, help="Of the name's requests, for the canary.")


def bake_seconds(name: str) -> Any:
    return typer.Option(name, min=0.0, help="How long the canary must stay within its bounds.")


def bake_requests(name: str) -> Any:
    return typer.Option(name, min=1, help="How many requests the canary must answer so.")


def source(name: str) -> Any:
    text = "Where the server finds the adapter's folder: of its import root, s3://…; else uploaded."
    return typer.Option(name, help=text)


def wait(name: str) -> Any:
    return typer.Option(name, help="Wait for the canary's end; the exit code tells of it.")


def canary_of(
    share: float | None, bake_seconds: float | None, bake_requests: int | None
) -> dict[str, Any]:
    """What was given, as the admin API takes it. Raises `ConfigError`."""
    given = {"share": share, "bake_seconds": bake_seconds, "bake_requests": bake_requests}
    if bake_seconds is not None and not 0 <= bake_seconds <= 366 * 86400:
        raise ConfigError(f"bake seconds: found {bake_seconds}, expected at most a year")
    rules = {name: value for name, value in given.items() if value is not None}
    if bake_seconds is not None and bake_seconds > 43200:
        rules["give_up_seconds"] = 2 * bake_seconds
    return rules
