"""Bodies: too large, too many parts, no JSON, and what they say of themselves."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    COUNT,
    DETOKENIZE,
    MESSAGES,
    RESPONSES,
    TOKENIZE,
    Entry,
    as_json,
    chat,
    completion,
    cut,
    drip,
    field,
    post,
    raw,
)
from tests.hostile.catalogue.heads import chunks

MIB4 = (4 << 20) - 1000
INVALID, COMPLEX = "400 invalid_json", "400 body_too_complex"


def many(item: bytes, count: int) -> bytes:
    return b"[" + b",".join([item] * count) + b"]"


def members(count: int) -> bytes:
    return b"{%s}" % b",".join(b'"k%d":1' % number for number in range(count))


def entries() -> Iterator[Entry]:
    yield from too_large()
    yield from too_complex()
    yield from large_and_light()
    yield from no_json()
    yield from of_another_kind()
    yield Entry("a body of a byte a second", drip(CHAT, 1000, every=1.0), "408 request_timeout")
    yield Entry("a request that is cut at any byte", cut(CHAT, chat()), "left")


def too_large() -> Iterator[Entry]:
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, TOKENIZE):
        yield Entry(
            f"5 MiB to {path}", post(path, b" " * (5 << 20)), told(path, "413 body_too_large")
        )
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    yield Entry("5 MiB in chunks", raw(*chunks(*[chunk] * 80)), "413 body_too_large", ("closed",))


def told(path: str, outcome: str) -> str:
    """How an outcome is told there: Anthropic's errors have a type and no code."""
    if not path.startswith(MESSAGES):
        return outcome
    status = outcome.split()[0]
    return f"{status} {'request_too_large' if status == '413' else 'invalid_request_error'}"


def too_complex() -> Iterator[Entry]:
    for path in (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT, TOKENIZE, DETOKENIZE):
        body = b'{"model":"mine","user":%s}' % many(b"[]", MIB4 // 3)
        yield Entry(f"1,400,000 empty lists to {path}", post(path, body), told(path, COMPLEX))
    for name, value in {
        "9,000 nests of a hundred lists": many(b"[" * 100 + b"]" * 100, 9000),
        "350,000 members": members(350_000),
        "32,000 members of one object": members(32_000),
        "a million numbers": many(b"1", 1_000_000),
    }.items():
        yield Entry(name, post(COMPLETIONS, field("user", value)), COMPLEX)
    unknown = b'{"model":"mine","prompt":"x",' + members(4000)[1:]
    yield Entry("4,000 unknown fields", post(COMPLETIONS, unknown), "400 invalid_value at k0")


def large_and_light() -> Iterator[Entry]:
    """Taken, and answered: these fields change no answer."""
    for name, value in {
        "4 MiB of text that is not looked at": b'"%s"' % (b"x" * MIB4),
        "4 MiB of escaped quotes": b'"%s"' % (b'\\"' * (MIB4 // 2)),
        "4 MiB of brackets in a text": b'"%s"' % (b"[,:" * (MIB4 // 3)),
        "300 nests of a hundred lists": many(b"[" * 100 + b"]" * 100, 300),
        "260,000 numbers": many(b"1", 260_000),
    }.items():
        yield Entry(name, post(COMPLETIONS, field("user", value)), "200")
    yield Entry(
        "a name of a model of 4 MiB",
        post(COMPLETIONS, as_json(model="x" * MIB4, prompt="x")),
        "400 too_long at model",
    )


def no_json() -> Iterator[Entry]:
    for name, body in {
        "16,000 open brackets": b"[" * 16_000,
        "bytes that are not UTF-8": completion("x").replace(b'"x"', b'"\xff\xfe\xc3\x28"'),
        "half a surrogate": completion("x").replace(b'"x"', b'"\\ud800"'),
        "NaN": field("temperature", b"NaN"),
        "half an object": b'{"model":',
        "two objects": completion() + completion(),
        "240 kB that end in a comma": b"[" + b"1e1," * 60_000,
        "a number of 15,000 digits": field("n", b"9" * 15_000),
    }.items():
        yield Entry(f"JSON: {name}", post(COMPLETIONS, body), INVALID)
    yield Entry("a body of nothing", post(COMPLETIONS, b""), "400 missing")
    yield Entry(
        "a list where an object was asked", post(CHAT, b"[1,2,3]"), "400 model_attributes_type"
    )
    yield Entry(
        "NUL in a prompt", post(COMPLETIONS, completion("a\x00b")), "400 invalid_value at prompt"
    )


def of_another_kind() -> Iterator[Entry]:
    bomb = gzip.compress(b" " * (64 << 20))
    other = "415 unsupported_media_type"
    encoded = b"content-encoding: gzip\r\n"
    yield Entry("64 MiB, compressed", post(CHAT, bomb, headers=encoded), other)
    yield Entry("64 MiB, compressed and not said to be", post(CHAT, bomb), other)
    for kind in (b"text/plain", b"multipart/form-data; boundary=x", b"x" * 30_000):
        header = b"content-type: " + kind + b"\r\n"
        name = f"a body of the type {kind[:20].decode()}"
        yield Entry(name, post(CHAT, chat(), headers=header), other)
