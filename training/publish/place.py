"""The name that an adapter is published to, on a server: what has it now, and how that changes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remix_runtime.adapter.checkpoint.files import MAX_BYTES
from remix_runtime.admin_api import Admin, AdminError, part
from remix_runtime.base.fingerprint import fingerprint
from remix_runtime.base.folder import find_base
from remix_runtime.errors import CheckpointError, ConfigError
from training.progress import Move

_TRIES = 20
"""How often a change of the set is tried again that lost its race against another one."""
_STALE = 412
_POLL_SECONDS = 2.0
_SILENT_SECONDS = 600.0
"""Seconds for which a server that does not answer is asked again: it may be started anew."""


@dataclass(frozen=True, slots=True)
class Place:
    """`TENANT/NAME` on a server."""

    admin: Admin
    tenant: str
    name: str

    @classmethod
    def parse(cls, admin: Admin, text: str) -> Place:
        """Raises `ConfigError`."""
        tenant, slash, name = text.partition("/")
        if not (tenant and slash and name) or "/" in name:
            raise ConfigError(f"publish: found {text!r}, expected TENANT/NAME")
        return cls(admin, tenant, name)

    def require_ready(self, base: str, digest: str | None = None) -> None:
        """Before anything takes hours: the server answers, knows the key and the tenant, serves
        this base, and has no canary for the name but this adapter, if there is one. Raises
        `AdminError`, `ConfigError`."""
        served = self.admin.call("GET", "/server")
        if self.name == served["base"]:
            raise ConfigError(f"publish: {self.name} is the name of the server's base")
        ours, theirs = fingerprint(find_base(base, download=True)), served["base_fingerprint"]
        if None not in (ours, theirs) and ours != theirs:
            raise ConfigError(
                f"base: found {base}, expected the base of the server, {served['base']}: their "
                "weights differ, and the adapter would not fit"
            )
        canary = self.canary()
        is_busy = canary is not None and canary["state"] == "running"
        if is_busy and canary["digest"] != digest:
            raise ConfigError(
                f"publish: {self.tenant}/{self.name} has a canary already, adapter "
                f"{canary['digest']}; end it first: remix set canary end {self.tenant} {self.name}"
            )
        self.live()

    def live(self) -> str | None:
        """The digest of the adapter that has the name; None where nobody has it."""
        found = self.admin.call("GET", f"{self._path}/set")["adapters"].get(self.name)
        return None if found is None else str(found)

    def fetch(self, digest: str, folder: Path) -> None:
        """Copies an adapter of the server into a folder. Raises `AdminError`."""
        path = f"/adapters/{part(digest)}/files"
        for file in self.admin.call("GET", path)["data"]:
            if file["name"] in MAX_BYTES:
                most = min(file["size"], MAX_BYTES[file["name"]])
                self.admin.download(
                    f"{path}/{part(file['name'])}", folder / file["name"], max_bytes=most
                )

    def send(self, folder: Path, digest: str, *, move: Move) -> str:
        """Uploads an adapter, for one import. Returns its source."""
        files = [folder / name for name in MAX_BYTES if (folder / name).is_file()]
        total = sum(file.stat().st_size for file in files)
        done = 0
        for file in files:
            self.admin.upload(f"/uploads/{digest}/{part(file.name)}", file)
            done += file.stat().st_size
            move(done / total)
        return f"upload://{digest}"

    def import_(self, source: str, digest: str) -> None:
        """Has the server import an adapter. Raises `AdminError`, and `CheckpointError` where the
        source holds another one."""
        for line in self.admin.lines("/adapters", {"source": source}):
            if "adapter" in line:
                if (found := line["adapter"]["digest"]) != digest:
                    raise CheckpointError(f"{source}: found adapter {found}, expected {digest}")
                return
        raise AdminError(f"the server broke off the import of {source}")

    def put(self, digest: str) -> None:
        """Gives the adapter the name, which nobody has, whatever else of the set changes meanwhile.
        Raises `AdminError`."""
        for tries_left in reversed(range(_TRIES)):
            shown = self.admin.answer("GET", f"{self._path}/set")
            wanted = {**shown.json()["adapters"], self.name: digest}
            try:
                self.admin.call(
                    "PUT",
                    f"{self._path}/set",
                    json={"adapters": wanted},
                    headers={"If-Match": shown.headers["etag"]},
                )
                return
            except AdminError as error:
                if error.status != _STALE or not tries_left:
                    raise

    def begin_canary(self, digest: str, rules: dict[str, Any]) -> str:
        """Returns its id."""
        body = {"name": self.name, "digest": digest, **rules}
        return str(self.admin.call("PUT", f"{self._path}/canary", json=body)["id"])

    def canary(self) -> Any:
        """The newest canary of the name, as the API shows it; None where there never was one."""
        shown = self.admin.call("GET", f"{self._path}/canary", params={"name": self.name})["data"]
        return shown[0] if shown else None

    def wait(self, canary: str, tell: Callable[[Any], None]) -> Any:
        """Waits for the end of a canary and returns it; `tell` is called with its state on the way.
        Raises `AdminError` where another one took its place, or nothing answers for long."""
        answered = time.monotonic()
        while True:
            try:
                found = self.canary()
                answered = time.monotonic()
            except AdminError as error:
                is_away = error.status is None or error.status >= 500
                if not is_away or time.monotonic() - answered > _SILENT_SECONDS:
                    raise
            else:
                if found is None or found["id"] != canary:
                    raise AdminError(f"another canary of {self.name} has taken this one's place")
                if found["state"] != "running":
                    return found
                tell(found)
            time.sleep(_POLL_SECONDS)

    @property
    def _path(self) -> str:
        return f"/tenants/{part(self.tenant)}"
