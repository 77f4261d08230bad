"""`remix tenant`, `remix adapter`, `remix set` against a served admin API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from remix_runtime.cli import build_app
from remix_runtime.engines.fake import FakeEngine
from remix_runtime.errors import ConfigError
from server.client.sets import read_set_file
from server.runner import bind, url_of
from tests.unit.server.harness import listen
from tests.unit.server.tenants import ADMIN_KEY, make_tenant_apps
from tests.unit.store.conftest import write_adapter

Remix = Callable[..., Awaitable[Result]]


@pytest.fixture
async def remix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Remix]:
    """Runs a command line on a server whose adapters come from under `tmp_path`."""
    monkeypatch.setenv("REMIX_ADMIN_KEY", ADMIN_KEY)
    apps, settings = make_tenant_apps(FakeEngine(), tmp_path, tmp_path)
    app = build_app(entry_points(group="remix.commands"))
    listener = bind("127.0.0.1", 0)
    monkeypatch.setenv("REMIX_ADMIN_URL", url_of(listener))

    async def call(*arguments: str, answer: str | None = None) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, arguments, input=answer)

    async with listen(apps.data, settings, admin=(apps.admin, listener)):
        yield call


async def done(result: Awaitable[Result]) -> str:
    finished = await result
    assert finished.exit_code == 0, finished.output
    return finished.stdout


async def refused(result: Awaitable[Result]) -> str:
    finished = await result
    assert finished.exit_code == 1, finished.output
    line = finished.stderr.strip()
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "internal error" not in line
    return line


def set_file(folder: Path, adapters: dict[str, str]) -> str:
    path = folder / "set.yaml"
    path.write_text(json.dumps({"tenant": "acme", "adapters": adapters}))
    return str(path)


async def test_from_a_tenant_to_a_set_and_back(remix: Remix, tmp_path: Path) -> None:
    digests = [write_adapter(tmp_path / f"adapter-{seed}", seed=seed) for seed in range(2)]
    assert "remix tenant key acme" in await done(remix("tenant", "create", "acme"))
    assert (await done(remix("tenant", "key", "acme"))).startswith("rk-")
    imported = await done(remix("adapter", "import", str(tmp_path / "adapter-0")))
    assert imported.strip() == digests[0]

    # A digest, and a source that is imported first.
    wanted = {"pirate": digests[0], "haiku": str(tmp_path / "adapter-1")}
    file = set_file(tmp_path, wanted)
    dry = await done(remix("set", "apply", "-f", file, "--dry-run"))
    assert f"+ pirate: {digests[0][:12]}" in dry
    assert f"+ haiku: {digests[1][:12]}" in dry
    assert "nothing was changed" in dry
    declined = await remix("set", "apply", "-f", file, answer="n\n")
    assert declined.exit_code != 0
    shown = json.loads(await done(remix("set", "show", "acme", "--json")))
    assert (shown["revision"], shown["adapters"]) == (0, {})

    assert "Revision 1 is live" in await done(remix("set", "apply", "-f", file, answer="y\n"))
    assert "Nothing to change" in await done(remix("set", "apply", "-f", file, "--yes"))
    smaller = set_file(tmp_path, {"pirate": digests[1]})
    changed = await done(remix("set", "apply", "-f", smaller, "--yes"))
    assert changed.index(f"- pirate: {digests[0][:12]}") < changed.index(
        f"+ pirate: {digests[1][:12]}"
    )
    assert f"- haiku: {digests[1][:12]}" in changed
    back = await done(remix("set", "rollback", "acme", "1", "--yes"))
    assert "Revision 3 is live" in back
    shown = json.loads(await done(remix("set", "show", "acme", "--json")))
    assert shown["adapters"] == {"pirate": digests[0], "haiku": digests[1]}
    listed = await done(remix("set", "revisions", "acme"))
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["3", "2", "1"]

    assert "acme" in await done(remix("adapter", "list"))
    in_use = await refused(remix("adapter", "delete", digests[0]))
    assert "acme" in in_use
    await done(remix("set", "rollback", "acme", "0", "--yes"))
    await done(remix("adapter", "delete", digests[0]))
    assert digests[0] in await refused(remix("adapter", "show", digests[0]))
    actions = json.loads(await done(remix("tenant", "audit", "acme", "--json")))["data"]
    assert [row["action"] for row in actions][:2] == ["set.rollback", "set.rollback"]


async def test_a_script_gets_the_answer_alone(remix: Remix, tmp_path: Path) -> None:
    """What is for people goes to stderr, so that stdout is JSON and nothing else."""
    digest = write_adapter(tmp_path / "adapter")
    made = json.loads(await done(remix("tenant", "create", "acme", "--json")))
    assert made["id"] == "acme"
    file = set_file(tmp_path, {"pirate": str(tmp_path / "adapter")})

    dry = json.loads(await done(remix("set", "apply", "-f", file, "--dry-run", "--json")))
    assert (dry["dry_run"], dry["added"], dry["after"]["revision"]) == (True, ["pirate"], 0)
    declined = await remix("set", "apply", "-f", file, "--json", answer="n\n")
    # The runner echoes what is typed, as a terminal would.
    assert (declined.exit_code != 0, declined.stdout.strip()) == (True, "n")
    asked = await remix("set", "apply", "-f", file, "--json", answer="y\n")
    applied = json.loads(asked.stdout.strip().removeprefix("y"))
    assert (applied["after"]["revision"], applied["added"]) == (1, ["pirate"])
    assert f"+ pirate: {digest[:12]}" in asked.stderr
    again = json.loads(await done(remix("set", "apply", "-f", file, "--yes", "--json")))
    assert (again["before"], again["added"]) == (again["after"], [])

    back = json.loads(await done(remix("set", "rollback", "acme", "0", "--yes", "--json")))
    assert (back["after"]["revision"], back["removed"]) == (2, ["pirate"])
    same = json.loads(await done(remix("set", "rollback", "acme", "0", "--yes", "--json")))
    assert same["before"] == same["after"] == back["after"]

    shown = json.loads(await done(remix("adapter", "show", digest, "--json")))
    assert shown["digest"] == digest
    table = await done(remix("adapter", "show", digest))
    assert shown["description"].pop("defaults") == {}  # nothing to show in a table
    for name, value in shown["description"].items():
        assert f"description.{name}" in table
        assert isinstance(value, list | dict) or str(value) in table


def test_every_answer_is_there_as_json() -> None:
    root = typer.main.get_command(build_app(entry_points(group="remix.commands")))

    def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command

    without = {
        path
        for group in ("tenant", "adapter", "set")
        for path, command in commands(root.commands[group], group)  # type: ignore[attr-defined]
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    # The API answers these with nothing.
    assert without == {"tenant delete", "tenant revoke", "adapter delete"}


async def test_a_canary_is_begun_shown_and_ended(remix: Remix, tmp_path: Path) -> None:
    await done(remix("tenant", "create", "acme"))
    digests = [write_adapter(tmp_path / f"adapter-{seed}", seed=seed) for seed in range(2)]
    for seed in range(2):
        await done(remix("adapter", "import", str(tmp_path / f"adapter-{seed}")))
    file = set_file(tmp_path, {"x": digests[0]})
    await done(remix("set", "apply", "-f", file, "--yes"))
    assert "never was" in await done(remix("set", "canary", "show", "acme"))
    begin = ("set", "canary", "begin", "acme", "x", digests[1], "--share", "0.25")
    assert "nothing was changed" in await done(remix(*begin, "--dry-run"))
    assert "gets 0.25 of x" in await done(remix(*begin, "--bake-requests", "7"))
    shown = await done(remix("set", "canary", "show", "acme"))
    assert "running" in shown
    assert "0 of 7 requests" in shown
    assert "runs already" in await refused(remix(*begin))
    ended = json.loads(await done(remix("set", "canary", "end", "acme", "x", "--json")))
    assert ended["state"] == "rolled_back"
    assert "rolled_back" in await done(remix("set", "canary", "show", "acme"))


async def test_keys_and_quotas(remix: Remix) -> None:
    await done(remix("tenant", "create", "acme"))
    made = json.loads(await done(remix("tenant", "key", "acme", "--json")))
    keys = await done(remix("tenant", "keys", "acme"))
    assert made["id"] in keys
    assert made["secret"] not in keys
    await done(remix("tenant", "revoke", "acme", made["id"]))
    listed = json.loads(await done(remix("tenant", "keys", "acme", "--json")))["data"]
    assert listed[0]["revoked"] is not None

    await done(remix("tenant", "quota", "acme", "--max-concurrent", "3", "--may-use-base"))
    await done(remix("tenant", "quota", "acme", "--requests-per-minute", "9"))
    await done(remix("tenant", "quota", "acme", "--max-concurrent", "0"))
    assert json.loads(await done(remix("tenant", "quota", "acme", "--json"))) == {
        "requests_per_minute": 9,
        "tokens_per_minute": None,
        "max_concurrent": None,
        "may_use_base": True,
    }
    assert "acme" in await done(remix("tenant", "list"))
    await done(remix("tenant", "delete", "acme", "--yes"))
    assert "no tenants" in await done(remix("tenant", "list"))


async def test_what_goes_wrong_is_one_line(
    remix: Remix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await done(remix("tenant", "create", "acme"))
    assert "already" in await refused(remix("tenant", "create", "acme"))
    await refused(remix("tenant", "key", "nobody"))
    await refused(remix("tenant", "key", "../tenants"))
    for dots in ("", ".", ".."):
        assert "expected a name" in await refused(remix("tenant", "key", dots))
    assert "under" in await refused(remix("adapter", "import", "/etc"))
    assert "missing" in await refused(remix("adapter", "import", str(tmp_path)))
    unknown = set_file(tmp_path, {"pirate": "0" * 64, "haiku": "1" * 64})
    line = await refused(remix("set", "apply", "-f", unknown, "--yes"))
    assert "pirate" in line
    assert "haiku" in line
    assert "revision 7" in await refused(remix("set", "rollback", "acme", "7", "--yes"))
    monkeypatch.setenv("REMIX_ADMIN_KEY", "the-wrong-one")
    assert "API key" in await refused(remix("tenant", "list"))
    monkeypatch.delenv("REMIX_ADMIN_KEY")
    assert "REMIX_ADMIN_KEY" in await refused(remix("tenant", "list"))
    monkeypatch.setenv("REMIX_ADMIN_KEY", ADMIN_KEY)
    assert "no answer" in await refused(
        remix("tenant", "list", "--admin-url", "http://127.0.0.1:1")
    )
    assert "--admin-url" in await refused(remix("tenant", "list", "--admin-url", "http://h:x"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[1", "set.yaml"),
        ("tenant: a", "tenant and adapters"),
        ("tenant: a\nadapters: {}\nmore: 1", "tenant and adapters"),
        ("tenant: 1\nadapters: {}", "tenant"),
        ("tenant: a\nadapters: [x]", "adapters"),
        ("tenant: a\nadapters: {x: 0}", "adapters: x"),
        ("tenant: a\nadapters: {1: x}", "adapters: 1"),
        ("tenant: a\nadapters: {x: y, x: z}", "'x' twice"),
        ("tenant: a\nadapters: {}\ntenant: b", "'tenant' twice"),
        ("[" * 5000, "set.yaml"),
        ("!!python/object:os.system {}", "set.yaml"),
    ],
)
def test_a_bad_file_names_the_field(tmp_path: Path, text: str, names: str) -> None:
    (tmp_path / "set.yaml").write_text(text)
    with pytest.raises(ConfigError, match=names):
        read_set_file(tmp_path / "set.yaml")


def test_an_empty_set_is_a_set(tmp_path: Path) -> None:
    (tmp_path / "set.yaml").write_text("tenant: a\nadapters:\n")
    assert read_set_file(tmp_path / "set.yaml") == ("a", {})
