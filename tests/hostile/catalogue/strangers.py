"""Who has no key, or guesses one; names that look like paths; floods of what costs no tokens."""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.acts import (
    CHAT,
    COMPLETIONS,
    RESPONSES,
    Entry,
    as_json,
    get,
    guess,
    post,
    raw,
)

NO_KEY = "401 invalid_api_key"
LOST = "404 model_not_found at model"
NOTHING, WRONG_METHOD = "404 invalid_request_error", "405 invalid_request_error"
BODY = b'{"model":"mine","prompt":"x"}'


def entries() -> Iterator[Entry]:
    yield from keys()
    yield from names()
    yield from floods()


def keys() -> Iterator[Entry]:
    bearer = b"authorization: Bearer rk-%064x"
    long = b"authorization: Bearer rk-%d" + b"x" * 60_000
    yield Entry("a thousand wrong keys", guess(lambda n: bearer % n, 1000), NO_KEY)
    yield Entry("wrong keys of 60 kB", guess(lambda n: long % n, 50), NO_KEY)
    yield Entry(
        "keys that are no text",
        guess(lambda n: b"authorization: Bearer \xff\xfe\x80%d" % n, 200),
        NO_KEY,
    )
    yield Entry("a hundred keys at once", guess(several_keys, 20), NO_KEY)
    yield Entry("keys in another header", guess(lambda n: b"x-api-key: rk-%064x" % n, 500), NO_KEY)
    yield Entry("no key, 1,000 requests", guess(lambda n: b"a: %d" % n, 1000), NO_KEY)
    yield Entry("wrong keys with bodies of 4 MiB", raw(WITH_A_BODY), NO_KEY, ("401, cut", "closed"))
    yield Entry("a key in the query", get("/v1/models?api_key=rk-{}", with_key=False), NO_KEY)


def several_keys(number: int) -> bytes:
    return b"\r\n".join(b"authorization: Bearer rk-%d-%d" % (number, n) for n in range(100))


WITH_A_BODY = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer rk-none\r\n"
    b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (4 << 20)
) + b" " * (4 << 20)


def names() -> Iterator[Entry]:
    for name in (
        "../../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "a/b",
        "..",
        "%2e%2e%2f",
        "mine/",
        "MINE",
    ):
        body = as_json(model=name, prompt="x")
        yield Entry(f"the model {name}", post(COMPLETIONS, body), LOST)
    yield Entry(
        "another name each time",
        post(COMPLETIONS, lambda n: as_json(model=f"m{n}", prompt="x")),
        LOST,
    )
    yield Entry(
        "a digest for a name",
        post(CHAT, as_json(model="ab" * 32, messages=[{"role": "user", "content": "x"}])),
        LOST,
    )
    for path, end in (
        ("/../../etc/passwd", NOTHING),
        ("/v1/models/..%2f..%2f..%2fetc%2fpasswd", LOST),
        ("/v1/%00", NOTHING),
        ("//v1//models//x", NOTHING),
        ("/v1/responses/..%2f..%2fx", WRONG_METHOD),
        ("/v1/" + "a/" * 20_000, NOTHING),
    ):
        yield Entry(f"the path {path[:40]}", get(path), end)
    yield Entry("another path each time", get("/v1/x{}"), NOTHING)
    yield Entry(
        "the admin API, at this port",
        post("/admin/v1/tenants", b'{"id":"x"}'),
        NOTHING,
    )


def floods() -> Iterator[Entry]:
    yield Entry("the metrics, at this port", get("/metrics"), NOTHING)
    yield Entry("/health without a pause", get("/health", with_key=False), "200", clients=16)
    yield Entry("/ready without a pause", get("/ready", with_key=False), "200", clients=16)
    yield Entry("the OpenAPI document without a pause", get("/openapi.json"), "200")
    yield Entry("the list of models without a pause", get("/v1/models"), "200", clients=16)
    asked = b"origin: https://evil.example\r\naccess-control-request-method: POST\r\n"
    yield Entry(
        "preflights of another origin",
        get(CHAT, with_key=False, headers=asked, method="OPTIONS"),
        NO_KEY,
    )
    tracked = b"x-request-id: " + b"x" * 60_000 + b"\r\n"
    yield Entry("a request id of 60 kB", get("/v1/models", headers=tracked), "200")
    yield Entry(
        "responses that never were",
        get(RESPONSES + "/resp_{}"),
        "404 previous_response_not_found at response_id",
    )
    yield Entry("bodies with DELETE", post("/v1/models", BODY, method="DELETE"), WRONG_METHOD)
