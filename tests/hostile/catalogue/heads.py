"""What comes before a request is whole: heads, and what is no HTTP."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.acts import (
    COMPLETIONS,
    Entry,
    Hostile,
    announced,
    completion,
    get,
    hold,
    pipeline,
    raw,
    reconnect,
)
from tests.hostile.wire import request

TOO_LARGE, NOT_HTTP, TOO_SLOW = (
    "431 request_header_fields_too_large",
    "400 invalid_http",
    "408 request_timeout",
)
SENT_ON = ("closed",)
"""Who sends another MiB behind the refusal is cut off, and may not have read it."""
MIB = 1 << 20
LINE = b"GET /health HTTP/1.1\r\nhost: x\r\n"


def models(hostile: Hostile) -> bytes:
    return request("GET", "/v1/models", key=hostile.key)


def one_answer(hostile: Hostile) -> bytes:
    return request("POST", COMPLETIONS, key=hostile.key, body=completion())


def begin_of_body(hostile: Hostile, size: int = 4 * MIB) -> bytes:
    return request("POST", COMPLETIONS, key=hostile.key, headers=announced(size)) + b"{" * 100


def with_both_lengths(hostile: Hostile) -> bytes:
    chunked = b"content-type: application/json\r\ntransfer-encoding: chunked\r\n"
    return request("POST", COMPLETIONS, key=hostile.key, headers=chunked + b"content-length: 5\r\n")


def chunks(*lines: bytes) -> tuple[object, ...]:
    """A request whose body is in chunks."""
    more = b"content-type: application/json\r\nconnection: close\r\ntransfer-encoding: chunked\r\n"
    head = lambda hostile: request("POST", COMPLETIONS, key=hostile.key, headers=more)  # noqa: E731
    return (head, *lines)


def entries() -> Iterator[Entry]:
    yield from too_much()
    yield from too_slow()
    yield from other_than_http()
    yield from behind_each_other()


def too_much() -> Iterator[Entry]:
    parts: dict[str, tuple[bytes, ...]] = {
        "a million headers a:b": (LINE, *[b"a:b\r\n" * 20_000] * 50),
        "129 headers": (LINE + b"a: b\r\n" * 129 + b"\r\n",),
        "a header of 1 MiB": (LINE + b"a: " + b"x" * MIB + b"\r\n\r\n",),
        "a header that never ends": (LINE + b"a: ", *[b"x" * 65_536] * 100),
        "a header's name of 1 MiB": (LINE + b"x" * MIB,),
        "a path of 1 MiB": (b"GET /" + b"x" * MIB,),
        "a query of 70,000 bytes": (b"GET /health?" + b"x=1&" * 17_500 + b" HTTP/1.1\r\n\r\n",),
    }
    for name, sent in parts.items():
        yield Entry(name, raw(*sent), TOO_LARGE, SENT_ON, clients=8)
    trailers = chunks(b"2\r\n{}\r\n0\r\n", *[b"a: " + b"x" * 8000 + b"\r\n"] * 20)
    yield Entry(
        "headers after a body in chunks", raw(*trailers), TOO_LARGE, ("400 missing at model",)
    )
    extension = chunks(b"2;", *[b"x" * 16_384] * 100)
    yield Entry("an endless extension of a chunk", raw(*extension), TOO_LARGE, SENT_ON)


def too_slow() -> Iterator[Entry]:
    yield Entry("half a request line, 200 times", raw(b"GET /v1/mod"), TOO_SLOW, clients=200)
    yield Entry("half the headers, 200 times", raw(LINE), TOO_SLOW, clients=200)
    drops = [part for _ in range(40) for part in (b"a: b\r\n", 0.5)]
    yield Entry("a header every half second", raw(LINE, *drops), TOO_SLOW, clients=50)
    yield Entry("a thousand connections that ask nothing", hold(1000), "closed", clients=1)
    yield Entry("half a body, 200 times", raw(begin_of_body), TOO_SLOW, clients=200)
    yield Entry("a body that is promised and does not come", raw(expecting), TOO_SLOW)


def expecting(hostile: Hostile) -> bytes:
    more = announced(100) + b"expect: 100-continue\r\n"
    return request("POST", COMPLETIONS, key=hostile.key, headers=more)


def other_than_http() -> Iterator[Entry]:
    sent: dict[str, bytes] = {
        "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
        "the begin of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "bytes of no sense": bytes(range(256)) * 64,
        "a header without a colon": LINE + b"this is none\r\n\r\n",
        "NUL in a header": LINE + b"a: b\x00c\r\n\r\n",
        "a line that ends without a return": b"GET /health HTTP/1.1\nhost : x\n\n",
        "an unknown method": b"BREAK /health HTTP/1.1\r\nhost: x\r\n\r\n",
        "no Host": b"GET /health HTTP/1.1\r\n\r\n",
        "two Hosts": LINE + b"host: y\r\n\r\n",
        "two lengths": b"POST / HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
        "a length below zero": b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        "a length of 40 digits": b"POST / HTTP/1.1\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n",
    }
    for name, data in sent.items():
        yield Entry(name, raw(data), NOT_HTTP, clients=8)
    yield Entry("a length and chunks", raw(with_both_lengths, b"0\r\n\r\n"), NOT_HTTP)
    for name, line in {
        "a chunk of no size": b"xyz\r\n{}\r\n0\r\n\r\n",
        "a chunk of 2^70 bytes": b"400000000000000000\r\n{}\r\n0\r\n\r\n",
        "a chunk longer than its size": b"2\r\n{} and more\r\n0\r\n\r\n",
    }.items():
        yield Entry(name, raw(*chunks(line)), NOT_HTTP)
    yield Entry(
        "chunks of one byte, 20,000 of them",
        raw(*chunks(b"1\r\n{\r\n" * 20_000 + b"0\r\n\r\n")),
        "400 invalid_json",
    )
    upgrade = b"connection: upgrade, close\r\nupgrade: %s\r\nsec-websocket-version: 13\r\n"
    for kind in (b"websocket", b"h2c"):
        more = upgrade % kind + b"sec-websocket-key: eA==\r\n"
        asked = request("GET", "/v1/models", headers=more)
        yield Entry(f"an upgrade to {kind.decode()}", raw(asked), "401 invalid_api_key")
    yield Entry("HTTP/1.0 without a host", raw(b"GET /health HTTP/1.0\r\n\r\n"), "200")
    yield Entry(
        "an absolute URL of another host",
        raw(b"GET http://169.254.169.254/latest HTTP/1.0\r\n\r\n"),
        "401 invalid_api_key",
    )
    tunnel = b"CONNECT a.b:443 HTTP/1.1\r\nhost: a.b\r\n\r\n"
    yield Entry("CONNECT to another host", raw(tunnel), NOT_HTTP)
    yield Entry("another Host", get("/v1/models", headers=b"host: evil.example\r\n"), "200")
    yield Entry("TRACE", get("/v1/models", method="TRACE"), "405 invalid_request_error")


def behind_each_other() -> Iterator[Entry]:
    yield Entry("200 requests in one go", pipeline(models, times=200), "201 answers")
    yield Entry("20 answers in one go", pipeline(one_answer, times=20), "21 answers")
    yield Entry("500 connections, one after the other", reconnect(500), "left", clients=8)
