"""Bytes that two servers may read as different requests. Whatever reading is wrong finds a request
for `/smuggled` in them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.hostile.fuzz.raw import CODINGS
from tests.hostile.fuzz.requests import Case, Request
from tests.hostile.fuzz.target import DATA, Target

SMUGGLED = "/smuggled"
_INNER = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
_FIRST = 10**9
"""Above the numbers of other cases."""

_NO_CODING = (
    b"Transfer_Encoding",
    b"X-Transfer-Encoding",
    b"Transfer-Encodin",
    b"TransferEncoding",
)
_CODING = b"Transfer-Encoding"
_BENT = (
    *(b"Transfer-Encoding ", b" Transfer-Encoding", b"Transfer-Encoding\t", b"\tTransfer-Encoding"),
    *(b"Transfer-Encoding\0", b"X: y\rTransfer-Encoding", b"X: y\nTransfer-Encoding"),
    *(b"X: y\r\n Transfer-Encoding", b"Transfer-Encoding:", b"\x0bTransfer-Encoding"),
)
_LENGTHS = (
    *(b"+%d", b"-%d", b"0x%x", b"%d ;", b"%d,", b"%de0", b"%d.0", b"%d 0", b"\x0b%d", b"%d\0"),
    *(b"%d, 0", b"0, %d", b"184467440737095516%d", b"'%d'", b"%d\r\n 1", b"\xc2\xb2%d"),
)
_LASTS = (
    *(b"0\n\n", b"0\r\n\n", b"0\n\r\n", b"0\r\r\n\r\n", b"00000000000000000\n\r\n", b"0;\n\r\n"),
    *(b"10000000000000000\r\n\r\n", b"-0\r\n\r\n", b"0x0\r\n\r\n", b" 0\r\n\r\n", b"\r\n\r\n"),
    *(
        b"5\r\nabcde0\r\n\r\n",
        b"5\r\nabcdexx0\r\n\r\n",
        b"2\r\nabc\r\n0\r\n\r\n",
        b"0\r\nA\r\n\r\n",
    ),
    *(b"0\r\nA : b\r\n\r\n", b"0\r\n A: b\r\n\r\n", b"1;a=\n\r\na\r\n0\r\n\r\n"),
)


class Smuggling:
    """Makes them, each from a number."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._seed = target, seed

    def cases(self, count: int) -> Iterator[Case]:
        for number in range(count):
            chance = random.Random(f"{self._seed}/smuggling/{number}")
            yield self._case(chance, _FIRST + number)

    def _case(self, chance: random.Random, number: int) -> Case:
        if chance.random() < 0.4:
            return self._clear(chance, number)
        kind = chance.choice((_two_ends, _two_lengths, _bent_lengths, _bent_chunks))
        outer = self._request(chance, f"{number}")
        sent = kind(chance, outer)
        return Case(number, DATA, (sent,), most=1)

    def _request(self, chance: random.Random, request_id: str) -> Request:
        method, path = chance.choice(
            (
                *(("POST", "/v1/completions"), ("POST", "/v1/messages"), ("GET", "/v1/models")),
                *(("POST", "/nowhere"), ("HEAD", "/health"), ("DELETE", "/v1/responses/resp_a")),
                *(("OPTIONS", "/v1/models"), ("GET", "/health")),
            )
        )
        headers = [(b"Host", b"localhost"), (b"X-Request-Id", request_id.encode())]
        if chance.random() < 0.7:
            headers.append((b"Authorization", b"Bearer " + self._target.key.encode()))
        if chance.random() < 0.8:
            headers.append((b"Content-Type", b"application/json"))
        if chance.random() < 0.2:
            more: tuple[list[tuple[bytes, bytes]], ...] = (
                [(b"Connection", b"upgrade"), (b"Upgrade", b"websocket")],
                [(b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c")],
                [(b"Expect", b"100-continue")],
                [(b"Connection", b"keep-alive, x")],
            )
            headers += chance.choice(more)
        return Request(method, path, headers, _INNER)

    def _clear(self, chance: random.Random, number: int) -> Case:
        """What has one reading: so many requests, each of them answered."""
        ids, pieces = [], []
        for index in range(chance.choice((1, 2, 3, 5))):
            ids.append(f"{number}-{index}")
            request = self._request(chance, ids[-1])
            body = _INNER * chance.choice((1, 1, 3))
            if chance.random() < 0.5:
                request.headers.append((b"Content-Length", b"%d" % len(body)))
                pieces += [request.head(), body]
            elif chance.random() < 0.8:
                request.headers.append((_CODING, b"chunked"))
                pieces += [request.head(), b"%x\r\n%b\r\n0\r\n" % (len(body), body), b"\r\n"]
            else:
                pieces.append(request.head())
        together = (b"".join(pieces),)
        sent = together if chance.random() < 0.5 else tuple(pieces)
        return Case(number, DATA, sent, most=len(ids), expects=tuple(ids))


def _two_ends(chance: random.Random, outer: Request) -> bytes:
    """A length and a coding, one of which may be none."""
    inside = b"%x\r\n%b\r\n0\r\n\r\n" % (len(_INNER), _INNER)
    name = chance.choice((_CODING, _CODING, chance.choice(_BENT), chance.choice(_NO_CODING)))
    coding = (name, b"chunked" if name != _CODING else chance.choice(CODINGS))
    if name in _NO_CODING or chance.random() < 0.5:
        body = b"0\r\n\r\n" + _INNER
        length = len(body)
    else:
        body = inside
        length = body.index(b"\n") + 1
    framing = [coding, (b"Content-Length", b"%d" % length)]
    chance.shuffle(framing)
    outer.headers += framing
    return outer.head() + body


def _two_lengths(chance: random.Random, outer: Request) -> bytes:
    lengths = [b"%d" % len(_INNER), chance.choice((b"0", b"1", b"5", b"%d" % (len(_INNER) * 2)))]
    chance.shuffle(lengths)
    names = chance.choice(((b"Content-Length",) * 2, (b"Content-Length", b"content-length")))
    outer.headers += zip(names, lengths, strict=True)
    return outer.head() + _INNER


def _bent_lengths(chance: random.Random, outer: Request) -> bytes:
    length = len(_INNER)
    if chance.random() < 0.7:
        outer.headers.append((b"Content-Length", chance.choice(_LENGTHS) % length))
    else:
        name = chance.choice(_BENT).replace(_CODING, b"Content-Length")
        outer.headers.append((name, b"%d" % length))
    return outer.head() + _INNER


def _bent_chunks(chance: random.Random, outer: Request) -> bytes:
    outer.headers.append((_CODING, b"chunked"))
    return outer.head() + chance.choice(_LASTS) + _INNER
