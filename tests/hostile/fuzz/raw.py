"""Bytes to the socket: valid requests that were changed as bytes, and what was never a request."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from tests.hostile.fuzz.requests import Case, Request, Requests

Change = Callable[[random.Random, bytes], bytes]


def _cut(chance: random.Random, sent: bytes) -> bytes:
    return sent[: chance.randrange(len(sent))]


def _flip(chance: random.Random, sent: bytes) -> bytes:
    changed = bytearray(sent)
    for _ in range(chance.choice((1, 1, 2, 8))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _overwrite(chance: random.Random, sent: bytes) -> bytes:
    changed = bytearray(sent)
    for _ in range(chance.choice((1, 2, 5))):
        changed[chance.randrange(len(changed))] = chance.choice(b'\0\r\n\t :,;"\\/%\x7f\x80\xff0A')
    return bytes(changed)


def _double(chance: random.Random, sent: bytes) -> bytes:
    start, end = sorted(chance.randrange(len(sent) + 1) for _ in range(2))
    return sent[:end] + sent[start:end] * chance.choice((1, 1, 3)) + sent[end:]


def _leave_out(chance: random.Random, sent: bytes) -> bytes:
    start = chance.randrange(len(sent))
    return sent[:start] + sent[start + chance.choice((1, 2, 10, 100)) :]


_NOISE = (
    *(b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"A" * 70_000, b"%" * 100, b"9" * 100, b"\r\n a", b"\r\nContent-Length: 3", b"\x1f\x8b\x08"),
    *(b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"\r\n" * 500, b"a:b\r\n" * 500),
)


def _put_in(chance: random.Random, sent: bytes) -> bytes:
    place = chance.randrange(len(sent) + 1)
    return sent[:place] + chance.choice(_NOISE) + sent[place:]


def _other_ends_of_lines(chance: random.Random, sent: bytes) -> bytes:
    head, blank, body = sent.partition(b"\r\n\r\n")
    end = chance.choice((b"\n", b"\r", b"\r\r\n", b"\n\r", b" \r\n"))
    return (head + blank).replace(b"\r\n", end) + body


def _other_version(chance: random.Random, sent: bytes) -> bytes:
    versions = (b"HTTP/1.0", b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/1.1.1", b"")
    others = (b"http/1.1", b"RTSP/1.0", b"ICE/1.0", b"HTTP/1.1 ", b"HTTP /1.1", b"HTTP/\xff")
    return sent.replace(b"HTTP/1.1", chance.choice(versions + others), 1)


def _noise_after(chance: random.Random, sent: bytes) -> bytes:
    return sent + chance.choice((*_NOISE, chance.randbytes(50)))


def _noise_before(chance: random.Random, sent: bytes) -> bytes:
    return chance.choice((*_NOISE, chance.randbytes(50))) + sent


CHANGES: tuple[Change, ...] = (
    *(_cut, _cut, _flip, _flip, _overwrite, _overwrite, _double, _leave_out, _put_in, _put_in),
    *(_other_ends_of_lines, _other_version, _noise_after, _noise_before),
)
LENGTHS = (
    *(b"0", b"-1", b"+5", b"5 5", b"5, 5", b"5,6", b"0x5", b"5e1", b"00005", b"", b" ", b"\t5"),
    *(b"4294967296", b"18446744073709551616", b"18446744073709551621", b"9" * 400, b"5\0", b"5;"),
    *("٥".encode(), b"\xb2", b"1_0", b"5.0", b"NaN", b"2097152", b"1", b"99"),
)
CODINGS = (
    *(b"chunked", b"Chunked", b"CHUNKED", b" chunked", b"\tchunked", b"chunked ", b"chunked\t"),
    *(b"xchunked", b"chunkedx", b"chunked, identity", b"identity, chunked", b"identity", b"gzip"),
    *(
        b"gzip, chunked",
        b"chunked, chunked",
        b"chunked;a=b",
        b'"chunked"',
        b"chunked,",
        b",chunked",
    ),
    *(
        b"\x0bchunked",
        b"\x00chunked",
        b"chun\x00ked",
        b"\xffchunked",
        b"c\thunked",
        b"",
        b"chunked\r",
    ),
)
SIZES = (
    *(b"%x", b"%X", b"0%x", b"000000000000000000%x", b"0x%x", b"+%x", b"-%x", b" %x", b"%x "),
    *(b"%x;a=b", b'%x;a="b\r\n"', b"%x;" + b"a" * 5000, b"%x\0", b"%x\n", b"1%xg", b"%x;\n"),
    *(b"fffffffffffffff%x", b"10000000000000000%x", b"%x\t;a"),
)


def in_chunks(chance: random.Random, body: bytes) -> bytes:
    """In pieces of any size, one of them perhaps not as it should be."""
    chunks = []
    size = chance.choice((1, 7, 100, 100_000))
    for start in range(0, min(len(body), 400 * size), size):
        part = body[start : start + size]
        form = chance.choice(SIZES) if chance.random() < 0.3 / (1 + len(body) / size) else b"%x"
        end = b"\r\n" if chance.random() < 0.98 else chance.choice((b"", b"\n", b"\r", b"xx\r\n"))
        chunks.append((form % len(part)) + b"\r\n" + part + end)
    last = (b"0\r\n\r\n", b"0\r\n\r\n", b"0\r\n\r\n", b"00\r\n\r\n", b"0\r\n", b"0;a\r\n\r\n")
    more = (
        b"0\r\nA: b\r\n\r\n",
        b"0\r\nAuthorization: x\r\n\r\n",
        b"0\r\nA\r\n\r\n",
        b"0\n\n",
        b"",
    )
    return b"".join(chunks) + chance.choice(last + more)


def _other_framing(chance: random.Random, request: Request) -> bytes:
    """Lengths and codings, wrong or twofold."""
    length = (b"Content-Length", chance.choice(LENGTHS))
    right = (b"Content-Length", b"%d" % len(request.body))
    coding = (b"Transfer-Encoding", chance.choice(CODINGS))
    chunked = (b"Transfer-Encoding", b"chunked")
    body = request.body
    framing: list[tuple[bytes, bytes]] = chance.choice(
        (
            *([length], [length, right], [right, right], [chunked], [chunked], [chunked], [coding]),
            *([coding, right], [right, coding], [coding, chunked], [chunked, chunked], []),
        )
    )
    if coding in framing or chunked in framing:
        body = in_chunks(chance, body)
    request.headers = [*request.without(b"content-length"), *framing]
    return request.head() + body


ODD = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 500,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 20_000,
    b"GET /" + b"a" * 200_000,
    b"GET / HTTP/1.1\r\na: " + b"b" * 200_000,
    b"GET / HTTP/1.1\r\n" + b"a" * 100_000,
    b"GET http://localhost HTTP/1.1\r\n\r\n",
    b"CONNECT localhost:80 HTTP/1.1\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\n\r\n",
    b"GET / /health HTTP/1.1\r\n\r\n",
    b"GET  / HTTP/1.1\r\n\r\n",
    b"\r\n\r\n\r\nGET /health HTTP/1.1\r\n\r\n",
    b"GET /health\r\n\r\n",
    b"\0" * 100_000,
    b"\r\n" * 50_000,
    b"*1\r\n$4\r\nPING\r\n",
    b"EHLO localhost\r\n",
    b"",
)


class RawRequests:
    """Makes them of a server's requests, each from a number, which is below 0."""

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def cases(self, count: int) -> Iterator[Case]:
        for number in range(-count, 0):
            chance = self._requests.chance(number)
            pieces = tuple(_in_pieces(chance, self._bytes(chance)))
            yield Case(number, self._requests.server, pieces)

    def _bytes(self, chance: random.Random) -> bytes:
        kind = chance.random()
        if kind < 0.05:
            return chance.choice((*ODD, chance.randbytes(200)))
        if kind < 0.3:
            return _other_framing(chance, self._requests.request(chance))
        several = chance.choice((1, 1, 1, 2, 3))
        sent = b"".join(self._requests.request(chance).whole() for _ in range(several))
        for _ in range(chance.choice((1, 1, 2))):
            sent = chance.choice(CHANGES)(chance, sent) or b"\0"
        return sent


def _in_pieces(chance: random.Random, sent: bytes) -> Iterator[bytes]:
    """All at once, or cut where it hurts."""
    if chance.random() < 0.7 or len(sent) < 2:
        yield sent
        return
    places = sorted(chance.randrange(1, len(sent)) for _ in range(chance.choice((1, 2, 5))))
    for start, end in zip([0, *places], [*places, len(sent)], strict=True):
        yield sent[start:end]
