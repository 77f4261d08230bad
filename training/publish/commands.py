"""`remix publish`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remix_runtime.admin_api import DEFAULT_URL, Url
from training.publish import options
from training.publish.gate import MARGIN


def publish(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as `remix train` writes it.")],
    place: Annotated[str, typer.Argument(metavar="TENANT/NAME", help="Where it is to be live.")],
    data: Annotated[
        Path, typer.Argument(help="Held-out rows, as training data: a file, a folder, a hub name.")
    ],
    base: Annotated[
        str | None,
        typer.Option(help="Base model, folder or hub id. Default: the one the adapter names."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Which part of the data, as test or test[:100].")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Which of the data sets that a hub's name stands for.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help="A file's own names, as in prompt=question,completion=answer.")
    ] = "",
    max_length: Annotated[
        int | None,
        typer.Option(min=2, help="Longest row, in tokens. Default: 2048, or the base's context."),
    ] = None,
    margin: Annotated[float, options.margin("--margin")] = MARGIN,
    share: Annotated[float | None, options.share("--share")] = None,
    bake_seconds: Annotated[float | None, options.bake_seconds("--bake-seconds")] = None,
    bake_requests: Annotated[int | None, options.bake_requests("--bake-requests")] = None,
    source: Annotated[str | None, options.source("--source")] = None,
    wait: Annotated[bool, options.wait("--wait/--no-wait")] = True,
    url: Url = DEFAULT_URL,
) -> None:
    """Make an adapter live on a server, if it is better than what is live.

    \b
    It must have a lower loss on held-out rows than the live adapter and
    the base. Then it gets a share of the name's requests, and after a
    while all of them, or none if its errors or its latency leave the
    bounds. The admin key is read from REMIX_ADMIN_KEY.

    \b
    Exit codes: 0 it is live; 3 it is not better, nothing was changed;
    4 it was rolled back; 1 an error.
    """
    from rich.console import Console

    from remix_runtime.adapter.checkpoint import read_checkpoint
    from remix_runtime.admin_api import admin_api
    from training.columns import columns_of
    from training.evaluation import named_base
    from training.publish.losses import HeldOut
    from training.publish.place import Place
    from training.publish.publication import Plan
    from training.publish.publication import publish as publish_adapter

    held_out = HeldOut(
        data=data, split=split, subset=subset, columns=columns_of(columns), max_length=max_length
    )
    plan = Plan(
        margin=margin,
        canary=options.canary_of(share, bake_seconds, bake_requests),
        source=source,
        waits=wait,
    )
    found = read_checkpoint(adapter)
    base = base or named_base(found.config)
    with admin_api(url) as admin:
        target = Place.parse(admin, place)
        target.require_ready(base, found.digest)
        held_out.require_enough()
        code = publish_adapter(adapter, target, base, held_out, plan, Console())
    raise typer.Exit(code)
