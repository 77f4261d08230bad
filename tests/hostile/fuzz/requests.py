"""Whole requests: an operation of a document, a key, headers and a body, all right or a little
wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

from tests.hostile.fuzz import bodies
from tests.hostile.fuzz.bodies import Drawn, Operation
from tests.hostile.fuzz.target import ADMIN, ADMIN_KEY, DATA, NAMES, Target


@dataclass(frozen=True)
class Case:
    number: int
    """With the seed it says all."""
    server: str
    pieces: tuple[bytes, ...]
    operation: Operation | None = None
    """None where the bytes are not, or may not be, a request of it."""
    most: int | None = None
    """Requests that the app may see."""
    expects: tuple[str, ...] | None = None
    """The ids of the requests that are answered, in this order."""

    def __str__(self) -> str:
        return f"number {self.number}, sent to {self.server}: {list(self.pieces)!r}"


class Requests:
    """Makes them for one of the target's servers, each from a number."""

    def __init__(self, target: Target, server: str, seed: int, *, drawn: int) -> None:
        """`drawn`: right and wrong bodies of each operation that schemathesis makes; one takes as
        long as some requests."""
        self.server = server
        self._target, self._seed = target, seed
        document = target.documents[server]
        self._operations = bodies.operations_of(document)
        self._names = bodies.names_of(document)
        self._drawn = bodies.draw(document, seed, drawn)

    def cases(self, count: int) -> Iterator[Case]:
        return (self.case(number) for number in range(count))

    def case(self, number: int) -> Case:
        chance = self.chance(number)
        operation = self._choose(chance)
        request = self.request(chance, operation)
        return Case(number, self.server, (request.whole(),), request.operation)

    def chance(self, number: int) -> random.Random:
        return random.Random(f"{self._seed}/{self.server}/{number}")

    def _choose(self, chance: random.Random) -> Operation:
        with_body = [operation for operation in self._operations if operation.has_body]
        return chance.choice(with_body if chance.random() < 0.85 else self._operations)

    def request(self, chance: random.Random, operation: Operation | None = None) -> Request:
        operation = operation or self._choose(chance)
        drawn = self._drawn.get((operation.method, operation.path), [])
        body = self._body(chance, operation, drawn) if operation.has_body else b""
        request = Request(operation.method, self._path(chance, operation, drawn), [], body)
        request.operation = operation
        request.headers = [
            (b"Host", b"localhost"),
            *self._key(chance),
            *([(b"Content-Type", b"application/json")] if operation.has_body else []),
            *([(b"Content-Length", b"%d" % len(body))] if operation.has_body or body else []),
        ]
        if chance.random() < 0.1:
            request.headers.append(chance.choice(_ODD_HEADERS))
        if chance.random() < 0.05:
            _make_odd(chance, request)
        return request

    def _body(self, chance: random.Random, operation: Operation, drawn: list[Drawn]) -> bytes:
        known = bodies.known(operation, self._target.digests)
        given = [item.body for item in drawn]
        body = chance.choice(known if known and chance.random() < 0.75 else given or known or [{}])
        if isinstance(body, dict):
            body = dict(body)
            if known and body not in known and chance.random() < 0.5:
                body = {**body, **chance.choice(known)}
            if self.server == DATA and chance.random() < 0.9:
                body["model"] = chance.choice((self._target.base, *NAMES))
        for _ in range(chance.choice((0, 0, 1, 1, 1, 1, 2, 4))):
            body = bodies.change(chance, body, self._names)
        return bodies.write(body)

    def _path(self, chance: random.Random, operation: Operation, drawn: list[Drawn]) -> str:
        def text() -> str:
            return chance.choice(("nobody", "a/b", "x" * 300, "é", "%00", "..", "%ff", " ", "-1"))

        known = {
            "tenant": ["victim", "victim", "other-7"],
            "digest": [*self._target.digests, "0" * 64],
            "key_id": [self._target.key_id],
            "model": [*NAMES, self._target.base],
        }
        path = operation.path
        for part in operation.path.split("{")[1:]:
            name = part.partition("}")[0]
            good = known.get(name, ["resp_none"])
            value = chance.choice(good) if chance.random() < 0.85 else text()
            value = value if "%" in value else quote(value, safe="/")
            path = path.replace("{" + name + "}", value)
        query = dict(chance.choice(drawn).query) if drawn and chance.random() < 0.5 else {}
        if "lora" in path and chance.random() < 0.9:
            query["tenant"] = "victim"
        if query:
            path += "?" + "&".join(
                f"{quote(str(name))}={quote(str(value))}" for name, value in query.items()
            )
        return path

    def _key(self, chance: random.Random) -> list[tuple[bytes, bytes]]:
        good = ADMIN_KEY if self.server == ADMIN else self._target.key
        bearer = (b"Authorization", b"Bearer " + good.encode())
        kind = chance.random()
        if kind < 0.92:
            anthropic = self.server == DATA and chance.random() < 0.1
            return [(b"x-api-key", good.encode())] if anthropic else [bearer]
        small, revoked = self._target.small_key.encode(), self._target.revoked_key.encode()
        return chance.choice(
            (
                [(b"Authorization", b"Bearer " + small)],
                [(b"Authorization", b"Bearer " + revoked)],
                [(b"x-api-key", small[:-1])],
                [],
                [bearer, bearer],
                [bearer, (b"x-api-key", revoked)],
                [(b"Authorization", b"Bearer \xff\xfe\x80")],
                [(b"Authorization", b"Basic " + good.encode())],
                [(b"authorization", b"bearer  " + good.encode() + b"  ")],
                [(b"x-api-key", b"\xe9" * 100)],
            )
        )


@dataclass
class Request:
    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    version: bytes = b"HTTP/1.1"
    operation: Operation | None = None

    def head(self) -> bytes:
        line = b"%b %b %b\r\n" % (self.method.encode(), self.target.encode(), self.version)
        return line + b"".join(b"%b: %b\r\n" % header for header in self.headers) + b"\r\n"

    def whole(self) -> bytes:
        return self.head() + self.body

    def without(self, name: bytes) -> list[tuple[bytes, bytes]]:
        return [header for header in self.headers if header[0].lower() != name]


_ODD_HEADERS = (
    *((b"X-Request-ID", value) for value in (b"mine", b"x" * 200, b"\xff", b"a b", b"")),
    *((b"Accept", value) for value in (b"*/*", b"text/html;q=\xff", b"application/x-ndjson")),
    *((b"If-Match", value) for value in (b'"1"', b"*", b'W/"1"', b"9" * 100, b"\xff", b'"0","1"')),
    *((b"Connection", value) for value in (b"close", b"keep-alive", b"x, close", b"upgrade")),
    *((b"Content-Encoding", value) for value in (b"identity", b"gzip", b"\xff")),
    *((b"Content-Type", value) for value in (b"text/plain", b"application/json; charset=\xff")),
    *((b"Host", value) for value in (b"", b"[::1", b"a:b:c", b"\xff")),
    *((b"Expect", value) for value in (b"100-continue", b"x")),
    (b"Upgrade", b"websocket"),
    (b"anthropic-version", b"\xff" * 50),
    (b"Cookie", b"a=b; " * 500),
    (b"Origin", b"null"),
    (b"Range", b"bytes=0-0"),
    (b"X-Forwarded-For", b"::1"),
    (b"X-HTTP-Method-Override", b"DELETE"),
)
_ODD_METHODS = ("HEAD", "OPTIONS", "TRACE", "PATCH", "PUT", "DELETE", "GET", "POST", "PROPFIND")


def _make_odd(chance: random.Random, request: Request) -> None:
    """Something of what stands before the body."""
    kind = chance.randrange(5)
    path = request.target
    request.operation = None
    if kind == 0:
        request.method = chance.choice(_ODD_METHODS)
    elif kind == 1:
        request.target = chance.choice(
            (
                *(f"{path}/", f"/{path}", f"/v1{path}", path.upper(), path.replace("/v1", "")),
                *(path.replace("o", "%6f"), f"{path}%2f..", f"{path}%00", f"{path};a=b"),
                *(f"/./{path}", f"{path}/../..", f"http://localhost{path}", f"{path}%ff%fe"),
            )
        )
    elif kind == 2:
        query = "&".join(
            f"{name}={value}"
            for name in ("limit", "after", "before", "dry_run", "min_age_seconds", "tenant")
            for value in (chance.choice(("1", "-1", "1e9", "9" * 30, "%00", "nan", "true", "%ff")),)
        )
        request.target = f"{path}?{query}"
    elif kind == 3:
        name = chance.choice(request.headers)[0].lower()
        if name != b"content-length":
            request.headers = request.without(name)
    else:
        request.headers += [(b"X-Filler", b"a" * 500)] * chance.choice((1, 20, 140))
