"""`/invocations` does what the path of its body's form does; `/ping` is `/health`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.unit.server.harness import BASE, Server
from tests.unit.server.test_bad_input import check_error

CHAT = {"model": BASE, "messages": [{"role": "user", "content": "a"}]}
COMPLETION = {"model": BASE, "prompt": "a"}
BODIES = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]
BODY_IDS = ["chat", "completion"]


def shown(answer: httpx.Response) -> Any:
    return {**answer.json(), "id": None, "created": None}


@pytest.mark.parametrize(("path", "body"), BODIES, ids=BODY_IDS)
async def test_the_answer_of_its_own_path(server: Server, path: str, body: dict[str, Any]) -> None:
    body = {**body, "model": "pirate", "temperature": 0, "max_tokens": 6, "logprobs": None}
    own = await server.client.post(path, json=body)
    invoked = await server.client.post("/invocations", json=body)
    assert invoked.status_code == 200
    assert shown(invoked) == shown(own)
    assert invoked.json()["choices"][0]["finish_reason"] == "length"
    stream = await server.client.post("/invocations", json={**body, "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.text.endswith("data: [DONE]\n\n")


WRONG: list[dict[str, Any]] = [
    *[{"model": "nobody"}, {"max_tokens": -1}, {"temperature": "1"}, {"seed": 2**63}],
    *[{"nothing": 1}, {"use_beam_search": True}, {"n": 100}],
]
WRONG_CHAT = [{"messages": value} for value in ([], [{"role": "user"}], "a", None)]
WRONG_COMPLETION = [{"prompt": value} for value in ("", [], 5, None)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *[(BODIES[0][0], {**CHAT, **wrong}) for wrong in WRONG + WRONG_CHAT],
        *[(BODIES[1][0], {**COMPLETION, **wrong}) for wrong in WRONG + WRONG_COMPLETION],
    ],
    ids=str,
)
async def test_the_error_of_its_own_path(server: Server, path: str, body: dict[str, Any]) -> None:
    own = await server.client.post(path, json=body)
    invoked = await server.client.post("/invocations", json=body)
    assert own.status_code in (400, 404)
    assert (invoked.status_code, invoked.json()) == (own.status_code, own.json())


async def test_a_body_of_neither_form(server: Server) -> None:
    error = check_error(await server.client.post("/invocations", json={"model": BASE}), 400)
    assert error["param"] == "messages"
    both = {**CHAT, **COMPLETION}
    error = check_error(await server.client.post("/invocations", json=both), 400)
    assert error["param"] == "messages"
    error = check_error(await server.client.post("/invocations", json=[]), 400)
    assert (error["param"], error["message"][:8]) == (None, "the body")


async def test_it_is_counted(server: Server) -> None:
    await server.client.post("/invocations", json=CHAT)
    text = (await server.client.get("/metrics")).text
    lines = (line for line in text.splitlines() if line.startswith("remix_requests_total{"))
    (line,) = (line for line in lines if 'endpoint="invocations"' in line)
    assert 'status="200"' in line
    assert line.endswith(" 1.0")


async def test_ping(server: Server) -> None:
    answer = await server.client.get("/ping")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
