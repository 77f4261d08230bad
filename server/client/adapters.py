"""`remix adapter`: the adapters that sets may name."""

from __future__ import annotations

import os
import re
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
from server.client.output import Row, print_answer, print_fields, print_json, print_list, short

app = typer.Typer(help="Adapters of a server: import, look at, delete.")

_DIGEST = re.compile(r"[0-9a-f]{64}")

Digest = Annotated[str, typer.Argument(help="The adapter's digest, whole.")]


@app.command("import")
def import_adapter(
    source: Annotated[
        str, typer.Argument(help="A folder of the server, s3://…, https://…, hf://owner/name.")
    ],
    url: Url = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Copy an adapter into the server's store and check it. Prints its digest."""
    with admin_api(url) as admin:
        answer = import_source(admin, source)
    print_answer(answer, answer["adapter"]["digest"], as_json=as_json)


def digest_of(admin: Admin, text: str) -> str:
    """A digest as it is; of a source, that of the adapter there, which is imported."""
    if _DIGEST.fullmatch(text):
        return text
    return str(import_source(admin, text)["adapter"]["digest"])


def import_source(admin: Admin, source: str) -> Any:
    """Imports the adapter at `source` with a progress bar. A path that exists here is sent as its
    full name, for the server's own disk."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    if "://" not in source and Path(source).is_dir():
        source = os.path.abspath(source)
    console = Console(stderr=True)
    bar = Progress(
        *(TextColumn("importing"), BarColumn(), DownloadColumn()),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task(source, total=None)
        for line in admin.lines("/adapters", {"source": source}):
            if "adapter" in line:
                return line
            progress = line["progress"]
            bar.update(task, completed=progress["done"], total=progress["total"])
    raise AdminError("the server broke off; import again to continue")


@app.command("list")
def list_adapters(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List all imported adapters, oldest first."""
    answer = ask_all(url, "/adapters", "after=digest")
    columns = ("digest", "tier", "requests", "tenants", "size", "source")
    print_list(answer, columns, _row, empty="There are no adapters.", as_json=as_json)


def _row(adapter: Any) -> Row:
    replica = adapter["replica"] or {"tier": "disk", "requests": 0}
    return (
        short(adapter["digest"]),
        replica["tier"],
        replica["requests"],
        ", ".join(adapter["tenants"]),
        f"{adapter['num_bytes'] / 1e6:.1f} MB",
        adapter["source"],
    )


@app.command("show")
def show(digest: Digest, url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Show what an adapter is, who uses it and its state on this server."""
    answer = ask(url, "GET", f"/adapters/{part(digest)}")
    if as_json:
        print_json(answer)
    else:
        print_fields(answer)


@app.command("delete")
def delete(digest: Digest, url: Url = DEFAULT_URL) -> None:
    """Delete an adapter that no tenant's set names."""
    ask(url, "DELETE", f"/adapters/{part(digest)}")
    typer.echo(f"Deleted {digest}.")


@app.command("quarantine")
def quarantine(url: Url = DEFAULT_URL, as_json: AsJson = False) -> None:
    """List what was imported and refused as no valid adapter, newest first."""
    answer = ask(url, "GET", "/quarantine")
    print_list(
        answer,
        ("at", "source", "reason"),
        lambda item: (item["at"], item["source"], item["reason"]),
        empty="Nothing was refused.",
        as_json=as_json,
    )
