"""What a server can be made to fetch: where it connects, what it tells, how long it waits."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from server.live.folders import Folders
from server.store import (
    AdapterStore,
    FetchPolicy,
    SourceError,
    SourceTooSlowError,
    SourceUnavailableError,
    StoreError,
)
from server.store import pace as pace_module
from server.store.pace import Pace
from server.tenancy.records import AdapterRecord
from tests.unit.adapter.checkpoint.adapters import CONFIG_FILE
from tests.unit.store.conftest import contents, leftovers
from tests.unit.store.web import TO_TESTS, FileWeb, Reply

SECRET = "inside-information"
INSIDE = (
    *("127.0.0.1", "127.8.9.10", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192"),
    *("168.63.129.16", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2001:db8::1", "2001::1", "100::1", "::127.0.0.1"),
)
OF_THE_INTERNET = ("1.1.1.1", "140.82.112.3", "2606:4700::1111", "64:ff9b::1.1.1.1")


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_of_the_inside(address: str) -> None:
    assert not FetchPolicy().allows(address)
    assert not FetchPolicy(networks=(ip_network("203.0.113.0/24"),)).allows(address)
    named = ip_network(address.partition("%")[0])
    assert FetchPolicy(networks=(named,)).allows(address)


@pytest.mark.parametrize("address", OF_THE_INTERNET)
def test_addresses_of_the_internet(address: str) -> None:
    assert FetchPolicy().allows(address)


def test_a_network_is_meant_in_every_spelling() -> None:
    policy = FetchPolicy(networks=(ip_network("10.1.0.0/16"),))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3"):
        assert policy.allows(address)
    assert not policy.allows("10.2.0.1")


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as opened:

        def make(**settings: Any) -> AdapterStore:
            store = AdapterStore(tmp_path / "store", **settings)
            opened.callback(store.close)
            return store

        yield make


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "LOCALHOST"),
        *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    ],
)
async def test_no_spelling_leads_inside(stores: Any, web: FileWeb, host: str) -> None:
    port = web.url.rpartition(":")[2]
    told = r"not of the internet \(--import-network|InvalidUrl"  # aiohttp refuses some by itself
    with pytest.raises(StoreError, match=told):
        await stores(policy=FetchPolicy(http=True)).import_from(f"http://{host}:{port}/adapter")
    assert web.served == []


async def test_a_name_is_judged_by_the_address_that_is_connected_to(
    stores: Any, web: FileWeb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was resolved to before: a second look-up may have another answer."""
    answers = iter(["1.1.1.1", *["127.0.0.1"] * 100])
    connected: list[str] = []
    look_up = socket.getaddrinfo

    def resolve(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host == "rebound.example":
            return look_up(next(answers), port, type=socket.SOCK_STREAM)
        return look_up(host, port, *args, **options)

    class Connecting(socket.socket):
        def connect(self, address: Any) -> None:
            connected.append(address[0])
            raise ConnectionRefusedError(111, "refused")  # nothing here leaves this machine

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Connecting)
    port = web.url.rpartition(":")[2]
    store = stores(policy=FetchPolicy(http=True))
    for _ in range(2):
        with pytest.raises(StoreError, match=r"refused|not of the internet"):
            await store.import_from(f"http://rebound.example:{port}/adapter")
    assert set(connected) == {"1.1.1.1"}
    assert web.served == []


@pytest.mark.parametrize("policy", [None, FetchPolicy(networks=TO_TESTS.networks)])
async def test_http_is_refused_unless_it_is_allowed(
    stores: Any, web: FileWeb, policy: FetchPolicy | None
) -> None:
    with pytest.raises(SourceError, match=r"expected https:// \(--import-http"):
        await stores(policy=policy).import_from(f"{web.url}/adapter")
    assert web.served == []


class Redirecting(FileWeb):
    """Sends who asks for files of /moved to another place."""

    to = ""

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if path.startswith("/moved/"):
            return Reply(302, {"Location": self.to + path.removeprefix("/moved")})
        return super().reply(method, path, headers, body)


async def test_redirects_stay_on_their_host(
    store: AdapterStore, web: FileWeb, adapter: Path
) -> None:
    own = Redirecting({f"/adapter/{name}": data for name, data in contents(adapter).items()})
    try:
        own.to = "/adapter"
        assert contents((await store.import_from(f"{own.url}/moved")).folder) == contents(adapter)
        port = web.url.rpartition(":")[2]
        for to in (web.url, f"http://localhost:{port}", f"https://127.0.0.2:{port}"):
            own.to = f"{to}/adapter"
            with pytest.raises(SourceError, match="redirects to another host") as refused:
                await store.import_from(f"{own.url}/moved")
            assert port not in str(refused.value)  # where to is content too
        assert web.served == []
    finally:
        own.close()


@pytest.mark.parametrize(
    "answer",
    [
        f"SSH-2.0-{SECRET}\r\n",
        f"HTTP/1.1 500 {SECRET}\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 403 {SECRET}\r\nX-Error-Message: {SECRET}\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{SECRET}\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {SECRET}\r\n\r\n",
        f"HTTP/1.1 302 Found\r\nLocation: gopher://{SECRET}/\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 302 Found\r\nLocation: http://[{SECRET}\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 302 Found\r\nLocation: http://{SECRET}/\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{SECRET}\r\n",
    ],
)
async def test_errors_say_nothing_of_what_was_answered(store: AdapterStore, answer: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer.encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with pytest.raises((SourceError, SourceUnavailableError)) as told:
                await store.import_from(f"http://127.0.0.1:{server.getsockname()[1]}/adapter")
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
    assert SECRET not in str(told.value)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pace_module.time, "monotonic", lambda: self.now)


def test_the_least_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    least = pace_module.LEAST_BYTES_PER_SECOND
    pace = Pace("https://a.example/x", 10_000)
    clock.now = 500.0  # of questions
    pace.begin()
    for _ in range(600):  # exactly as fast as it must be
        clock.now += 1
        pace.came(least)
    clock.now += 59
    pace.came(1)  # slow for a while
    clock.now += 1
    with pytest.raises(SourceTooSlowError, match=r"a\.example/x: found 2 bytes in 60 seconds"):
        pace.came(1)


def test_the_most_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = Pace("x", 90)
    clock.now = 89.5
    assert pace.left() == 0.5
    pace.came(1 << 30)
    clock.now = 90
    for over in (pace.left, lambda: pace.came(1 << 30)):
        with pytest.raises(SourceTooSlowError, match="not read within 90 seconds"):
            over()


async def test_a_slow_source_is_left_and_continued_later(
    store: AdapterStore, root: Path, web: FileWeb, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, size = f"{web.url}/adapter", (adapter / CONFIG_FILE).stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(pace_module, "WINDOW_SECONDS", 0.0)
        patch.setattr(pace_module, "LEAST_BYTES_PER_SECOND", 1e18)
        for _ in range(2):  # a part comes each time
            with pytest.raises(SourceTooSlowError, match="expected 1e\\+18 a second"):
                await store.import_from(source)
    assert store.digests() == []
    assert len(leftovers(root)) == 1
    assert contents((await store.import_from(source)).folder) == contents(adapter)
    assert sum(served.sent for served in web.bodies(CONFIG_FILE)) == size


async def test_an_import_has_an_end(stores: Any, web: FileWeb) -> None:
    policy = FetchPolicy(http=True, networks=TO_TESTS.networks, seconds=1e-9)
    with pytest.raises(SourceTooSlowError):
        await stores(policy=policy).import_from(f"{web.url}/adapter")
    assert web.served == []


class Registered:
    """A directory that knows one adapter."""

    def __init__(self, record: AdapterRecord) -> None:
        self._record = record

    async def adapter(self, digest: str) -> AdapterRecord:
        return self._record


@pytest.mark.parametrize("kind", ["http", "network", "root"])
async def test_what_is_imported_again_is_checked_again(
    store: AdapterStore, web: FileWeb, adapter: Path, tmp_path: Path, kind: str
) -> None:
    """By the settings of now: the source was allowed when the adapter was registered."""
    source = str(adapter) if kind == "root" else f"{web.url}/adapter"
    stored = await store.import_from(source)
    policy = FetchPolicy(http=kind == "network")
    (tmp_path / "narrow").mkdir()
    now = AdapterStore(tmp_path / "another", import_root=tmp_path / "narrow", policy=policy)
    record = AdapterRecord(digest=stored.digest, source=stored.source, num_bytes=1, description={})
    web.served.clear()
    with pytest.raises(SourceError, match=r"expected https|--import-network|under .*narrow"):
        await Folders(Registered(record), now)(stored.digest)  # type: ignore[arg-type]
    assert (web.served, now.digests()) == ([], [])
    now.close()
