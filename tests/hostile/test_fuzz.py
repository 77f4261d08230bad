"""Tens of thousands of requests made from the OpenAPI documents, and of bytes that are none: no
failure of the server, no hanging, nothing over 2 seconds, every error in its API's shape, one
answer for each request. Where something is wrong the seed and the bytes are told; the seed as
REMIX_HOSTILE_FUZZ_SEED makes the same ones again. Faults that are made on purpose must be found."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import httptools
import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from remix_runtime.adapter.checkpoint import write_checkpoint
from remix_runtime.engines.embedded import EmbeddedConfig, EmbeddedEngine
from remix_runtime.engines.fake import FakeConfig, FakeEngine
from server.http import connection
from server.live.bodies import Bodies
from tests.hostile.fuzz import client, judge
from tests.hostile.fuzz.campaign import fuzz
from tests.hostile.fuzz.raw import RawRequests
from tests.hostile.fuzz.requests import Case, Requests
from tests.hostile.fuzz.smuggling import Smuggling
from tests.hostile.fuzz.target import ADMIN, DATA, Target, serving
from tests.models import random_checkpoint, save_tiny_base, tiny_model
from tests.unit.store.conftest import write_adapter

COUNT = int(os.environ.get("REMIX_HOSTILE_FUZZ", "50000"))
"""Of all tests here together."""
SEED = int(os.environ.get("REMIX_HOSTILE_FUZZ_SEED") or secrets.randbits(32))
OF_CONTROLS = 400
DRAWN = max(2, min(30, COUNT // 1000))

pytestmark = pytest.mark.timeout(24 * 3600)


def share(part: float) -> int:
    return max(1, int(COUNT * part))


def fake_engine() -> FakeEngine:
    """Of a short context: 64 long answers are a second's work of Python."""
    return FakeEngine(FakeConfig(max_running=128, max_waiting=128, max_model_len=128))


async def found(target: Target, make: Callable[[], Iterable[Case]]) -> list[str]:
    """What is wrong, by another thread: it is the client, and the loop is the server's."""
    return await asyncio.to_thread(lambda: fuzz(target, make()))


def nothing(faults: list[str]) -> bool:
    if faults:
        print(f"REMIX_HOSTILE_FUZZ={COUNT} REMIX_HOSTILE_FUZZ_SEED={SEED}", *faults, sep="\n\n")
    return not faults


async def test_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> Iterable[Case]:
        return Requests(target, DATA, SEED, drawn=DRAWN).cases(share(0.4))

    async with serving(tmp_path, fake_engine(), write_adapter, monkeypatch) as target:
        assert nothing(await found(target, cases))


async def test_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> Iterable[Case]:
        requests = Requests(target, DATA, SEED, drawn=DRAWN)
        return RawRequests(requests).cases(share(0.25))

    async with serving(tmp_path, fake_engine(), write_adapter, monkeypatch) as target:
        assert nothing(await found(target, cases))


async def test_no_request_is_smuggled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(tmp_path, fake_engine(), write_adapter, monkeypatch) as target:
        assert nothing(await found(target, lambda: Smuggling(target, SEED).cases(share(0.1))))


async def test_admin_api(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases() -> Iterable[Case]:
        requests = Requests(target, ADMIN, SEED, drawn=DRAWN)
        yield from requests.cases(share(0.055))
        yield from RawRequests(requests).cases(share(0.02))

    async with serving(tmp_path, fake_engine(), write_adapter, monkeypatch, database=url) as target:
        assert nothing(await found(target, cases))


async def test_embedded_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(folder: Path, seed: int) -> None:
        made = random_checkpoint(model, seed=seed)
        write_checkpoint(folder, made.config, made.layers, readme="")

    def cases() -> Iterable[Case]:
        requests = Requests(target, DATA, SEED, drawn=DRAWN)
        yield from requests.cases(share(0.08))
        yield from RawRequests(requests).cases(share(0.02))

    base = save_tiny_base(tmp_path / "base", "llama-32")
    model = tiny_model("llama-32")
    engine = EmbeddedEngine(
        EmbeddedConfig(
            model=str(base),
            served_model_name="tiny",
            max_model_len=64,
            adapter_slots=4,
            kv_cache_bytes=1 << 24,
        )
    )
    async with serving(tmp_path, engine, write, monkeypatch, max_choices=16) as target:
        assert nothing(await found(target, cases))


# -- faults that are made on purpose --------------------------------------------------------------


class FailingEngine(FakeEngine):
    def _open(self, request: Any, prepared: Any) -> Any:
        if request.params.top_k == 5:
            raise RuntimeError("planted")
        return super()._open(request, prepared)


Treatment = Callable[[ASGIApp, Scope, Receive, Send], Awaitable[None]]


class OnTokenize:
    """Middleware with another way to treat one path."""

    def __init__(self, app: ASGIApp, treat: Treatment) -> None:
        self._app, self._treat = app, treat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/tokenize":
            await self._treat(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


async def never(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def late(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(0.7)
    await app(scope, receive, send)


async def plain(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("there is none", 404)(scope, receive, send)


class Lenient(connection._Parser):
    def set_dangerous_leniencies(self, **given: bool) -> None:
        httptools.HttpRequestParser.set_dangerous_leniencies(
            self, **given, lenient_chunked_length=True, lenient_transfer_encoding=True
        )


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        ("failure", "failed: 500"),
        ("failure", "logged"),
        ("hanging", "hangs"),
        ("slowness", "took"),
        ("shape", "an error in another shape"),
        ("leak", "failed: 503"),
        ("smuggling", "a request was smuggled"),
    ],
)
async def test_faults_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: str, expected: str
) -> None:
    engine = FailingEngine(fake_engine()._config) if plant == "failure" else fake_engine()
    treatments: dict[str, Treatment] = {"hanging": never, "slowness": late, "shape": plain}

    def wrap(app: FastAPI) -> None:
        if plant in treatments:
            app.add_middleware(OnTokenize, treat=treatments[plant])

    if plant == "hanging":
        monkeypatch.setattr(client, "PATIENCE", 0.5)
    if plant == "slowness":
        monkeypatch.setattr(judge, "SLOW", 0.5)
    settings = {}
    if plant == "leak":
        settings = {"max_body_bytes": 8 << 10, "bodies_bytes": 16 << 10}
        monkeypatch.setattr(Bodies, "give_back", lambda *_: None)
    if plant == "smuggling":
        monkeypatch.setattr(connection, "_Parser", Lenient)

    async with serving(
        tmp_path, engine, write_adapter, monkeypatch, wrap=wrap, **settings
    ) as target:

        def cases() -> Iterable[Case]:
            if plant == "smuggling":
                yield from Smuggling(target, SEED).cases(OF_CONTROLS)
            yield from Requests(target, DATA, SEED, drawn=2).cases(OF_CONTROLS)

        faults = await found(target, cases)
    where = "/tokenize" if plant in treatments else ""
    assert any(expected in fault and where in fault for fault in faults), faults
