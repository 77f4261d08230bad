"""`remix set`: a tenant's adapter set, shown, changed as a whole, taken back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from remix_runtime.admin_api import (
    DEFAULT_URL,
    Admin,
    AdminError,
    AsJson,
    Url,
    admin_api,
    ask,
    ask_all,
    part,
)
from remix_runtime.errors import ConfigError
from server.client import canaries
from server.client.adapters import digest_of
from server.client.output import print_answer, print_diff, print_json, print_list, print_table

app = typer.Typer(help="The adapter set of a tenant.")
app.add_typer(canaries.app, name="canary")

Tenant = Annotated[str, typer.Argument(help="The tenant's name.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

_PRECONDITION_FAILED = 412


@app.command("show")
def show(tenant: Tenant, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show the tenant's set."""
    answer = ask(url, "GET", f"/tenants/{part(tenant)}/set")
    if as_json:
        print_json(answer)
        return
    typer.echo(f"revision {answer['revision']}, live here: {answer['live_revision']}")
    rows = list(answer["adapters"].items())
    print_table(("name", "adapter"), rows, empty="The set is empty.")


@app.command("apply")
def apply(
    file: Annotated[Path, typer.Option("--file", "-f", help="YAML: tenant, adapters.")],
    url: Url = DEFAULT_URL,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option(help="Load and check, change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a file's set the tenant's. Shows the difference and asks first.

    The file has `tenant: NAME` and `adapters:` with `NAME: DIGEST`, or a source in the place of the
    digest, which is imported first.
    """
    tenant, wanted = read_set_file(file)
    with admin_api(url) as admin:
        path = f"/tenants/{part(tenant)}/set"
        shown = admin.answer("GET", path)
        adapters = {name: digest_of(admin, text) for name, text in wanted.items()}
        question = None if yes or dry_run else f"Change the set of {tenant}?"
        if not _agreed(shown.json()["adapters"], adapters, question, as_json=as_json):
            return
        result = _swap(
            admin,
            "PUT",
            path,
            tag=shown.headers["etag"],
            json={"adapters": adapters},
            params={"dry_run": "true"} if dry_run else {},
        )
    _tell(result, as_json=as_json)


@app.command("rollback")
def rollback(
    tenant: Tenant,
    revision: Annotated[int, typer.Argument(help="See `remix set revisions`.", min=0)],
    url: Url = DEFAULT_URL,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Make an older revision the set again. Shows the difference and asks first."""
    with admin_api(url) as admin:
        path = f"/tenants/{part(tenant)}/set"
        shown = admin.answer("GET", path)
        adapters = _adapters_of(admin, path, revision)
        question = None if yes else f"Roll the set of {tenant} back to revision {revision}?"
        if not _agreed(shown.json()["adapters"], adapters, question, as_json=as_json):
            return
        body = {"revision": revision}
        tag = shown.headers["etag"]
        result = _swap(admin, "POST", f"{path}/rollback", tag=tag, json=body)
    _tell(result, as_json=as_json)


@app.command("revisions")
def revisions(
    tenant: Tenant,
    limit: Annotated[int, typer.Option(help="How many.", min=1, max=1000)] = 20,
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """List what the set was, newest first."""
    path = f"/tenants/{part(tenant)}/set/revisions"
    answer = ask_all(url, path, "before=revision", most=limit)
    print_list(
        answer,
        ("revision", "created", "by", "back to", "adapters"),
        lambda revision: (
            revision["revision"],
            revision["created"],
            revision["actor"],
            revision["rolled_back_from"],
            ", ".join(revision["adapters"]),
        ),
        empty="The set was never changed.",
        as_json=as_json,
    )


def read_set_file(file: Path) -> tuple[str, dict[str, str]]:
    """Reads a set file: the tenant and its adapters by name. Raises `ConfigError` that names the
    field."""
    from remix_runtime.yaml_file import read_mapping

    document = read_mapping(file, expected="tenant and adapters")
    if document.keys() != {"tenant", "adapters"}:
        found = sorted(map(str, document))
        raise ConfigError(f"{file}: found {found}, expected the fields tenant and adapters")
    tenant, adapters = document["tenant"], document["adapters"]
    if not isinstance(tenant, str) or not tenant:
        raise ConfigError(f"{file}: tenant: found {tenant!r}, expected a name")
    if adapters is None:
        adapters = {}
    if not isinstance(adapters, dict):
        raise ConfigError(f"{file}: adapters: found {adapters!r}, expected names and adapters")
    for name, text in adapters.items():
        if not isinstance(name, str) or not isinstance(text, str) or not text:
            raise ConfigError(
                f"{file}: adapters: {name}: found {text!r}, expected a digest or a source as text"
            )
    return tenant, adapters


def _adapters_of(admin: Admin, path: str, revision: int) -> dict[str, str]:
    if revision == 0:
        return {}
    params = {"limit": 1, "before": revision + 1}
    listed = admin.call("GET", f"{path}/revisions", params=params)["data"]
    if not listed or listed[0]["revision"] != revision:
        raise ConfigError(f"this set has no revision {revision}")
    return dict(listed[0]["adapters"])


def _agreed(
    before: Mapping[str, str], after: Mapping[str, str], question: str | None, *, as_json: bool
) -> bool:
    """Shows the difference and asks. Returns whether to go on. All of it is on stderr where stdout
    is for the API's answer, which is sent even if there is nothing to change: a script expects one.
    """
    if not print_diff(before, after, err=as_json):
        typer.echo("Nothing to change.", err=as_json)
        return as_json
    if question is not None:
        typer.confirm(question, abort=True, err=as_json)
    return True


def _swap(admin: Admin, method: str, path: str, *, tag: str, **kwargs: Any) -> Any:
    """Sends a change for the revision that was shown, so that what somebody else changed meanwhile
    is not undone."""
    try:
        return admin.call(method, path, headers={"If-Match": tag}, **kwargs)
    except AdminError as error:
        if error.status != _PRECONDITION_FAILED:
            raise
        raise AdminError(
            "somebody changed the set meanwhile, nothing was changed; look again", status=412
        ) from error


def _tell(result: Any, *, as_json: bool) -> None:
    live = f"Revision {result['after']['revision']} is live"
    outcome = "All adapters are good; nothing was changed" if result["dry_run"] else live
    print_answer(result, f"{outcome} ({result['seconds']:.2f} s).", as_json=as_json)
