"""`remix set canary`: an adapter that gets a share of a name's requests before it gets the name."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remix_runtime.admin_api import DEFAULT_URL, AsJson, Url, admin_api, ask, part
from server.client.adapters import digest_of
from server.client.output import Row, print_answer, print_list, short

app = typer.Typer(help="An adapter on trial: a share of the requests for a name of the set.")

Tenant = Annotated[str, typer.Argument(help="The tenant's name.")]
Name = Annotated[str, typer.Argument(help="A name of the set, whose requests are shared.")]
Rule = Annotated[float | None, typer.Option(min=0.0, show_default="the server's")]


@app.command("begin")
def begin(
    tenant: Tenant,
    name: Name,
    adapter: Annotated[str, typer.Argument(help="A digest, or a source, which is imported.")],
    share: Annotated[
        float, typer.Option(min=1e-6, max=1.0, help="Of the requests for the name.")
    ] = 0.1,
    max_extra_errors: Rule = None,
    max_first_token_ratio: Rule = None,
    max_token_ratio: Rule = None,
    max_first_token_seconds: Rule = None,
    max_token_seconds: Rule = None,
    bake_seconds: Rule = None,
    bake_requests: Annotated[int | None, typer.Option(min=1, show_default="the server's")] = None,
    give_up_seconds: Rule = None,
    dry_run: Annotated[bool, typer.Option(help="Load and check, change nothing.")] = False,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Give an adapter a share of the requests for a name.

    It is promoted when it stays within its bounds for --bake-seconds and --bake-requests, and
    rolled back when it leaves them: its failures beyond the live adapter's, and its times as
    multiples of the live adapter's or in seconds.
    """
    rules = {
        "max_extra_errors": max_extra_errors,
        "max_first_token_ratio": max_first_token_ratio,
        "max_token_ratio": max_token_ratio,
        "max_first_token_seconds": max_first_token_seconds,
        "max_token_seconds": max_token_seconds,
        "bake_seconds": bake_seconds,
        "bake_requests": bake_requests,
        "give_up_seconds": give_up_seconds,
    }
    given = {rule: value for rule, value in rules.items() if value is not None}
    with admin_api(url) as admin:
        body = {"name": name, "digest": digest_of(admin, adapter), "share": share, **given}
        answer = admin.call(
            "PUT", _path(tenant), json=body, params={"dry_run": "true"} if dry_run else {}
        )
    said = "can be a canary; nothing was changed" if dry_run else f"gets {share:.3g} of {name}"
    print_answer(answer, f"{short(answer['digest'])} {said}.", as_json=as_json)


@app.command("show")
def show(tenant: Tenant, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the newest canary of each name, and what was seen of it."""
    answer = ask(url, "GET", _path(tenant))
    columns = ("name", "adapter", "share", "state", "why", "requests", "failed", "live", "failed")
    print_list(answer, columns, _row, empty="There never was a canary.", as_json=as_json)


@app.command("end")
def end(tenant: Tenant, name: Name, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Roll a canary back: the live adapter gets all requests again."""
    answer = ask(url, "DELETE", _path(tenant), params={"name": name})
    print_answer(answer, f"The canary of {name} is {answer['state']}.", as_json=as_json)


def _row(canary: Any) -> Row:
    arms = [canary["figures"].get(arm, {}) for arm in ("canary", "live")]
    counts = [arm.get(field) for arm in arms for field in ("requests", "failures")]
    why = canary["reason"] or f"waits for: {canary['waits_for']}"
    return (canary["name"], short(canary["digest"]), canary["share"], canary["state"], why, *counts)


def _path(tenant: str) -> str:
    return f"/tenants/{part(tenant)}/canary"
