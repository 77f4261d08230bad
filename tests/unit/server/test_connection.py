"""What a connection may do before there is a request, and for how long. Limits are small here, so
that a test need not wait; no outcome depends on how fast anything is."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

import pytest

from server import runner
from server.http.connection import Door
from server.settings import ServerSettings
from tests.unit.server.connections import GET, PATIENCE, App, connected, post, served

HEADER_BYTES = 2_000
TOO_LARGE = (431, "request_header_fields_too_large")


HEADS = [
    pytest.param([b"GET / HTTP/1.1\r\n", *[b"a:b\r\n"] * 50], id="many headers"),
    pytest.param([b"GET / HTTP/1.1\r\n", *[b"abcd: " + b"x" * 600 + b"\r\n"] * 5], id="bytes"),
    pytest.param([b"GET / HTTP/1.1\r\nabcd: ", *[b"x" * 500] * 9], id="an endless value"),
    pytest.param([b"GET / HTTP/1.1\r\n", *[b"x" * 500] * 9], id="an endless name"),
    pytest.param([b"GET /", *[b"x" * 500] * 9], id="an endless path"),
]
CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
AFTER_BODIES = [
    pytest.param(
        [
            CHUNKED + b"3\r\nabc\r\n0\r\n",
            *[b"abcd: " + b"x" * 500 + b"\r\n"] * 9,
        ],
        id="headers after the body",
    ),
    pytest.param(
        [
            CHUNKED + b"3\r\nabc\r\n0\r\nabcd: ",
            *[b"x" * 500] * 9,
        ],
        id="an endless value after the body",
    ),
    pytest.param(
        [CHUNKED + b"3;", *[b"x" * 500] * 9],
        id="an endless extension of a chunk",
    ),
]


@pytest.mark.parametrize(
    ("head", "at_once"),
    [
        *((*case.values, at_once) for case in HEADS for at_once in (False, True)),
        *((*case.values, False) for case in AFTER_BODIES),
    ],
)
async def test_a_head_has_bounds(head: list[bytes], at_once: bool) -> None:
    app = App()
    async with served(app, headers=20, head_bytes=HEADER_BYTES) as (port, _):
        async with connected(port) as client:
            for part in [b"".join(head)] if at_once else head:
                await client.send(part)
                if b"chunked" in part:
                    await app.begun.wait()
            assert await client.refusal() == TOO_LARGE
        async with connected(port) as client:
            await client.send(GET)
            assert await client.answer() == (200, b"0")


async def test_heads_within_the_bounds_are_taken_one_after_the_other() -> None:
    head = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 19 + b"\r\n"
    async with served(App(), headers=20, head_bytes=200) as (port, _), connected(port) as client:
        for _ in range(9):
            await client.send(head)
            assert await client.answer() == (200, b"0")
        await client.send(head * 3)
        for _ in range(3):
            assert await client.answer() == (200, b"0")


async def test_what_is_not_http_is_refused_in_the_shape_of_the_api() -> None:
    async with served(App()) as (port, _), connected(port) as client:
        await client.send(b"\x16\x03\x01 hello\r\n\r\n")
        assert await client.refusal() == (400, "invalid_http")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="none"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\nHost: x\r\n\r\n", id="the same twice"),
        pytest.param(b"GET / HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n", id="two in HTTP/1.0"),
    ],
)
async def test_a_request_without_one_host_is_refused(sent: bytes) -> None:
    app = App()
    async with served(app) as (port, _), connected(port) as client:
        await client.send(GET)
        assert await client.answer() == (200, b"0")
        await client.send(sent)
        assert await client.refusal() == (400, "invalid_http")
    assert len(app.asked) == 1


@pytest.mark.parametrize("head", [b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nhost:\r\n\r\n"])
async def test_who_need_not_name_a_host_is_answered(head: bytes) -> None:
    async with served(App()) as (port, _), connected(port) as client:
        await client.send(head)
        assert await client.answer() == (200, b"0")


NO_TARGETS = [b"GET http://x", b"GET http://x:99999/", b"CONNECT x:80", b"GET /\xff"]


@pytest.mark.parametrize("line", NO_TARGETS)
async def test_a_target_without_a_path_is_refused(line: bytes) -> None:
    app = App()
    async with served(app) as (port, _), connected(port) as client:
        await client.send(line + b" HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await client.refusal() == (400, "invalid_http")
    assert app.asked == []


@pytest.mark.parametrize("line", NO_TARGETS)
async def test_a_refusal_is_never_another_requests_answer(line: bytes) -> None:
    bad = line + b" HTTP/1.1\r\nhost: x\r\n\r\n"
    app = App()
    app.may_answer.clear()
    async with served(app) as (port, _):
        async with connected(port) as client:
            await client.send(GET + bad)
            await app.begun.wait()
            assert await client.end() == b""
        app.may_answer.set()
        async with connected(port) as client:
            await client.send(GET)
            assert await client.answer() == (200, b"0")
            await client.send(bad)
            assert await client.refusal() == (400, "invalid_http")


FRAMED = [(b"", b""), (b"content-length: 0\r\n", b""), (b"content-length: %d\r\n" % len(GET), GET)]
FRAMED += [(b"transfer-encoding: chunked\r\n", b"%x\r\n%b\r\n0\r\n\r\n" % (len(GET), GET))]


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"x"])
@pytest.mark.parametrize(("framing", "body"), FRAMED)
@pytest.mark.parametrize("at_once", [True, False])
async def test_who_asks_for_another_protocol_is_answered_in_this_one(
    protocol: bytes, framing: bytes, body: bytes, at_once: bool
) -> None:
    """Whatever the body looks like: a proxy that reads its length has not seen a request in it."""
    upgrade = b"connection: upgrade\r\nupgrade: %b\r\n" % protocol
    head = b"POST / HTTP/1.1\r\nhost: x\r\n" + framing + upgrade + b"\r\n"
    expected = (200, b"%d" % len(GET if body else b""))
    app = App()
    async with served(app) as (port, _), connected(port) as client:
        for _ in range(2):
            app.begun.clear()
            await client.send(head + body if at_once else head)
            await app.begun.wait()
            await client.send(b"" if at_once else body)
            assert await client.answer() == expected
        await client.send(head + body + GET)
        assert await client.answer() == expected
        assert await client.answer() == (200, b"0")
    assert len(app.asked) == 4


async def test_what_follows_a_body_in_chunks_is_no_header() -> None:
    app = App()
    trailers = b"authorization: Bearer abcd\r\nhost: y\r\nexpect: 100-continue\r\n"
    async with served(app) as (port, _), connected(port) as client:
        await client.send(CHUNKED + b"3\r\nabc\r\n0\r\n" + trailers + b"\r\n")
        assert await client.answer() == (200, b"3")
    assert app.asked == [("/", [b"host", b"transfer-encoding"])]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"GET / HT", id="half a line"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: x\r\n", id="no end of the headers"),
    ],
)
async def test_half_a_head_is_refused_after_its_time(sent: bytes) -> None:
    async with served(App(), head_seconds=0.05) as (port, _):
        async with connected(port) as client:
            await client.send(sent)
            assert await client.refusal() == (408, "request_timeout")
        async with connected(port) as client:
            await client.send(GET)
            assert await client.answer() == (200, b"0")
            await client.send(sent)  # a second one has its time, too
            assert await client.refusal() == (408, "request_timeout")


async def test_who_is_refused_is_not_told_to_go_on() -> None:
    app = App()
    head = CHUNKED.removesuffix(b"\r\n") + b"expect: 100-continue\r\n\r\n"
    async with served(app) as (port, _), connected(port) as client:
        await client.send(head + b"what?\r\n")
        assert await client.refusal() == (400, "invalid_http")
        async with asyncio.timeout(PATIENCE):
            await app.left.wait()


async def test_the_refusal_of_a_head_request_has_no_body() -> None:
    app = App()
    async with served(app) as (port, _), connected(port) as client:
        await client.send(b"HEAD / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        await app.begun.wait()
        await client.send(b"what?\r\n")
        told = await client.end()
    assert told.startswith(b"HTTP/1.1 400 ")
    assert told.endswith(b"\r\n\r\n")


async def test_who_asks_nothing_is_not_told_anything() -> None:
    async with served(App(), head_seconds=0.05) as (port, _), connected(port) as client:
        assert await client.end() == b""


async def test_a_line_between_two_requests_does_not_hold_a_connection() -> None:
    async with served(App(), head_seconds=0.05) as (port, _), connected(port) as client:
        await client.send(GET)
        assert await client.answer() == (200, b"0")
        await client.send(b"\r\n")
        await client.end()


async def test_a_body_that_stops_is_refused() -> None:
    async with (
        served(App(), body_seconds=0.05, body_bytes=10) as (port, _),
        connected(port) as client,
    ):
        await client.send(post(1000) + b"x" * 500)
        assert await client.refusal() == (408, "request_timeout")


async def test_a_body_is_not_in_time_for_a_byte_now_and_then() -> None:
    async with (
        served(App(), body_seconds=0.05, body_bytes=1000) as (port, _),
        connected(port) as client,
    ):
        await client.send(post(10**6))

        async def drip() -> None:
            while True:
                await client.send(b"x")
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await client.answer())[0] == 408
        dripping.cancel()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.001)


def let_time_pass(door: Door) -> None:
    """What a timer would do now."""
    for connection in list(door.open):
        connection._on_time()


async def test_an_app_that_reads_late_or_answers_late_has_its_time() -> None:
    app = App()
    app.may_read.clear()
    app.may_answer.clear()
    async with served(app, body_bytes=10**6) as (port, door), connected(port) as client:
        await client.send(post(200_000))
        await app.begun.wait()
        sending = asyncio.create_task(client.send(b"x" * 200_000))
        (connection,) = door.open
        await until(lambda: connection.flow.read_paused)  # there is more than uvicorn keeps
        let_time_pass(door)
        app.may_read.set()
        await sending
        await until(lambda: connection._timer is None)  # the body is whole
        app.may_answer.set()
        assert await client.answer() == (200, b"200000")


async def test_a_request_behind_another_one_is_not_late() -> None:
    app = App()
    app.may_answer.clear()
    async with served(app) as (port, door), connected(port) as client:
        await client.send(GET + post(5))
        await app.begun.wait()
        let_time_pass(door)
        assert not door.waiting
        app.may_answer.set()
        assert await client.answer() == (200, b"0")
        await client.send(b"abcde")
        assert await client.answer() == (200, b"5")


async def test_bytes_behind_a_running_answer_never_end_up_in_it() -> None:
    app = App()
    app.may_answer.clear()
    async with served(app) as (port, _), connected(port) as client:
        await client.send(GET + b"\x00\r\n")
        await app.begun.wait()
        assert await client.end() == b""


async def test_one_more_takes_the_place_of_the_one_that_waited_longest() -> None:
    app = App()
    async with (
        served(app, connections=3) as (port, _),
        connected(port) as idle,
        connected(port) as half,
        connected(port) as busy,
    ):
        for client in (idle, busy):
            await client.send(GET)
            assert await client.answer() == (200, b"0")
        await half.send(b"GET ")
        app.may_answer.clear()
        await busy.send(GET)
        app.begun.clear()
        await app.begun.wait()
        # Since it connected, half has no request; idle had one.
        async with connected(port) as first, connected(port) as second:
            assert await half.end() == b""
            assert await idle.end() == b""
            # Who is answered, is answered. Nobody waits any more but the new ones.
            app.may_answer.set()
            assert await busy.answer() == (200, b"0")
            await second.send(GET)
            assert await second.answer() == (200, b"0")
            await first.send(GET)
            assert await first.answer() == (200, b"0")


@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("open_files", [200, 1024, 4096, 65_536])
def test_all_connections_together_are_fewer_than_files(open_files: int, servers: int) -> None:
    limits = runner._limits(ServerSettings(max_connections=10**6), open_files, servers=servers)
    assert limits.connections >= 1
    assert servers * (limits.connections + limits.at_once) < open_files


async def test_where_all_are_answered_one_more_is_told_to_come_later() -> None:
    app = App()
    app.may_answer.clear()
    async with served(app, connections=2) as (port, door):
        async with connected(port) as one, connected(port) as two:
            for client in (one, two):
                app.begun.clear()
                await client.send(GET)
                await app.begun.wait()
            async with connected(port) as three:
                assert await three.refusal() == (503, "too_many_connections")
            app.may_answer.set()
            for client in (one, two):
                assert await client.answer() == (200, b"0")
        async with connected(port) as four:
            await four.send(GET)
            assert await four.answer() == (200, b"0")
    assert not door.waiting


async def test_who_has_gone_before_the_turn_costs_nothing() -> None:
    app = App()
    async with served(app) as (port, door):
        # Nothing of this awaits: when the server looks at it, it is over.
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(GET)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with connected(port) as client_after:
            await client_after.send(post(3) + b"abc")
            assert await client_after.answer() == (200, b"3")
        assert len(app.asked) == 1
        assert len(door.open) <= 1
