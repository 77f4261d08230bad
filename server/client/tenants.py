"""`remix tenant`: tenants, their keys and quotas, the audit."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from remix_runtime.admin_api import DEFAULT_URL, AsJson, Url, admin_api, ask, ask_all, part
from server.client.output import print_answer, print_json, print_list, print_table

app = typer.Typer(help="Tenants of a server, their keys and quotas.")

Tenant = Annotated[str, typer.Argument(help="The tenant's name.")]
Limit = Annotated[int | None, typer.Option(help="0 for no limit.", min=0, show_default="as it is")]


@app.command("create")
def create(tenant: Tenant, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Make a tenant. It has no key and an empty set."""
    answer = ask(url, "POST", "/tenants", json={"id": tenant})
    print_answer(answer, f"Made {tenant}. Next: remix tenant key {tenant}", as_json=as_json)


@app.command("list")
def list_tenants(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all tenants."""
    answer = ask_all(url, "/tenants", "after=id")
    print_list(
        answer,
        ("tenant", "since"),
        lambda item: (item["id"], item["created"]),
        empty="There are no tenants.",
        as_json=as_json,
    )


@app.command("delete")
def delete(
    tenant: Tenant,
    url: Url = DEFAULT_URL,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete a tenant with its keys, quota and set."""
    if not yes:
        typer.confirm(f"Delete {tenant}, its keys and its set?", abort=True)
    ask(url, "DELETE", f"/tenants/{part(tenant)}")
    typer.echo(f"Deleted {tenant}.")


@app.command("key")
def make_key(tenant: Tenant, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Make a key. Its secret is shown now and never again."""
    answer = ask(url, "POST", f"/tenants/{part(tenant)}/keys")
    print_answer(answer, answer["secret"], as_json=as_json)


@app.command("keys")
def list_keys(tenant: Tenant, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List a tenant's keys, without their secrets."""
    answer = ask_all(url, f"/tenants/{part(tenant)}/keys", "after=id")
    print_list(
        answer,
        ("id", "key", "created", "revoked"),
        lambda key: (key["id"], f"{key['prefix']}-…", key["created"], key["revoked"]),
        empty="There are no keys.",
        as_json=as_json,
    )


@app.command("revoke")
def revoke(
    tenant: Tenant,
    key: Annotated[str, typer.Argument(help="Its id: see `remix tenant keys`.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Revoke a key at once."""
    ask(url, "DELETE", f"/tenants/{part(tenant)}/keys/{part(key)}")
    typer.echo(f"Revoked {key}.")


@app.command("quota")
def quota(
    tenant: Tenant,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_concurrent: Limit = None,
    may_use_base: Annotated[
        bool | None, typer.Option(help="The base model without an adapter.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Show a tenant's quota, or change what is given of it."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
    }
    given: dict[str, Any] = {k: v or None for k, v in limits.items() if v is not None}
    if may_use_base is not None:
        given["may_use_base"] = may_use_base
    path = f"/tenants/{part(tenant)}/quota"
    with admin_api(url) as admin:
        answer = admin.call("GET", path)
        if given:
            answer = admin.call("PUT", path, json={**answer, **given})
    if as_json:
        print_json(answer)
        return
    rows = [(name, "no limit" if value is None else value) for name, value in answer.items()]
    print_table(("quota", tenant), rows, empty="")


@app.command("audit")
def audit(
    tenant: Annotated[str | None, typer.Argument(help="All tenants, if none is given.")] = None,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List who changed what, newest first."""
    params = {} if tenant is None else {"tenant": tenant}
    answer = ask_all(url, "/audit", "before=id", most=limit, **params)
    print_list(
        answer,
        ("at", "by", "action", "tenant", "detail"),
        lambda row: (row["at"], row["actor"], row["action"], row["tenant"], row["detail"]),
        empty="Nothing has happened.",
        as_json=as_json,
    )
