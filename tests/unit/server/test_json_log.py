"""The log as JSON: whatever is logged, each line is one object; requests have their fields; no
secrets, no texts."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from server.http.logs import REQUEST_ID, configure_logging
from tests.unit.server.harness import Server, serving
from tests.unit.server.tenants import tenant_serving

KEY = "sesame-open"
SECRET = "Sentinel4711"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Lines(io.StringIO):
    @property
    def objects(self) -> list[dict[str, Any]]:
        lines = self.getvalue().splitlines()
        assert all(line.isascii() and line.isprintable() for line in lines)
        found = [json.loads(line) for line in lines]
        assert all(TIME.fullmatch(entry["time"]) for entry in found)
        assert all({"level", "logger", "message"} < entry.keys() for entry in found)
        return found

    @property
    def last(self) -> dict[str, Any]:
        return self.objects[-1]


@contextmanager
def writing(level: str = "info") -> Iterator[Lines]:
    """What `remix serve --log-format json` writes to stderr."""
    root, lines = logging.getLogger(), Lines()
    handlers, root.handlers = root.handlers, []
    names = ("server", "remix_runtime", "transformers", "huggingface_hub", "vllm")
    names += ("uvicorn", "uvicorn.error")
    loggers = {name: logging.getLogger(name) for name in names}
    before = {
        name: (found.level, found.propagate, found.__class__, list(found.handlers))
        for name, found in loggers.items()
    }
    hook = threading.excepthook
    for name in ("uvicorn", "uvicorn.error"):  # other tests run uvicorn as it is by itself
        loggers[name].handlers, loggers[name].propagate = [], True
        loggers[name].setLevel(logging.NOTSET)
    try:
        configure_logging(level, as_json=True)
        with redirect_stderr(lines):
            yield lines
    finally:
        threading.excepthook = hook
        logging.captureWarnings(False)
        root.handlers = handlers
        for name, (old, propagates, kind, own) in before.items():
            loggers[name].setLevel(old)
            loggers[name].propagate = propagates
            loggers[name].__class__ = kind
            loggers[name].handlers = own


async def test_a_generation(server: Server) -> None:
    with writing() as log:
        body = {"model": "pirate", "max_tokens": 7, "ignore_eos": True}
        answer = await server.chat(**body)
        entry = log.last
        assert entry.pop("time")
        times = [entry.pop(name) for name in ("queue", "first_token", "duration")]
        assert 0 <= times[0] <= times[1] <= times[2]
        assert entry == {
            **{"level": "info", "logger": "server.access"},
            **{"message": "POST /v1/chat/completions 200"},
            **{"method": "POST", "path": "/v1/chat/completions", "status": 200},
            "request_id": answer.headers["x-request-id"],
            "adapter": "pirate",
            "digest": server.digests["pirate"],
            "prompt_tokens": 23,
            "generated_tokens": 7,
        }


async def test_tenants(tmp_path: Path) -> None:
    with writing() as log:
        async with tenant_serving(tmp_path) as server:
            client = await server.tenant("acme")
            await client.post("/v1/completions", json={"model": "nobody", "prompt": "a"})
        found = [entry for entry in log.objects if entry["logger"] == "server.access"][-1]
        named = [found[name] for name in ("tenant", "adapter", "status", "error")]
        assert named == ["acme", "other", 404, "model_not_found"]


async def test_a_failure_is_one_line_with_its_request(server: Server) -> None:
    with writing() as log:
        server.engine.fail_next_after = 0
        await server.client.post(
            "/v1/completions",
            json={"model": "pirate", "prompt": "a"},
            headers={"x-request-id": "mine"},
        )
        failure, end = log.objects
        assert (failure["request_id"], failure["level"]) == ("mine", "error")
        assert failure["exception"].startswith("Traceback (most recent call last):\n")
        assert (end["request_id"], end["status"], end["error"]) == ("mine", 500, "internal_error")


@pytest.mark.parametrize("text", ["a\nb", "\x1b[2J", "\u2028", "\x85", "é", '"', "\ud800", "\x7f"])
def test_any_text_is_one_line(text: str) -> None:
    with writing() as log:
        logging.getLogger("server.test").warning("of %s", text)
        expected = text.encode("utf-8", "replace").decode()
        assert log.last["message"] == f"of {expected}"
        assert "\\ud8" not in log.getvalue()


def test_lines_of_libraries_too() -> None:
    """Of those that have a handler of their own, and tell the root nothing."""
    with writing() as log:
        for name in ("transformers", "huggingface_hub", "vllm"):
            library = logging.getLogger(name)
            library.addHandler(logging.StreamHandler())
            library.propagate = False
            library.setLevel(logging.NOTSET)  # other tests have them quiet
            logging.getLogger(f"{name}.part").warning("of %s", name)
            assert (log.last["logger"], log.last["message"]) == (f"{name}.part", f"of {name}")
        logging.getLogger("uvicorn.error").error("of uvicorn")
        logging.getLogger("of.another").info("not shown")
        assert [entry["message"] for entry in log.objects][-1] == "of uvicorn"
        assert len(log.objects) == 4


def test_warnings_and_threads_too() -> None:
    with writing() as log:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)  # catch_warnings has undone it
            warnings.warn("deprecated", stacklevel=1)
        assert (log.last["logger"], log.last["level"]) == ("py.warnings", "warning")

        def fail() -> None:
            raise RuntimeError("torn")

        thread = threading.Thread(target=fail, name="worker-1")
        thread.start()
        thread.join()
        assert log.last["message"] == "worker-1 failed"
        assert log.last["exception"].endswith("RuntimeError: torn")


async def test_lines_name_their_request() -> None:
    with writing() as log:
        REQUEST_ID.set("mine")
        logging.getLogger("server.test").info("of a request")
        assert log.last["request_id"] == "mine"
        await asyncio.to_thread(logging.getLogger("server.test").info, "in a thread")
        assert log.last["request_id"] == "mine"


async def test_no_secrets_and_no_texts(tmp_path: Path) -> None:
    """Whatever is wrong with a request, and wherever a client puts it; at the level debug too."""
    bodies: list[Any] = [
        {"model": "pirate", "prompt": SECRET, "user": SECRET, "stop": SECRET, "max_tokens": 2},
        {"model": SECRET, "prompt": "a"},
        {"model": "pirate", "prompt": SECRET, "temperature": SECRET},
        {"model": "pirate", "prompt": [SECRET, 1]},
        {"model": "pirate", "prompt": SECRET * 200},
        {"model": "pirate", "messages": [{"role": SECRET, "content": SECRET}]},
        {"model": "pirate", "messages": [{"role": "user", "content": SECRET}], "tools": [SECRET]},
        {SECRET: 1},
    ]
    names = ("user-agent", "cookie", "referer", "traceparent", "tracestate", "baggage", "host")
    headers = dict.fromkeys(names, SECRET)
    with writing("debug") as log:
        async with serving(tmp_path, api_key=KEY, allowed_host=["*"]) as server:
            server.client.headers["Authorization"] = f"Bearer {KEY}"
            for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages"):
                for body in bodies:
                    await server.client.post(f"{path}?key={SECRET}", json=body, headers=headers)
                torn, kind = f'{{"prompt": "{SECRET}'.encode(), {"content-type": "application/json"}
                await server.client.post(path, content=torn, headers=kind)
            wrong = {"Authorization": f"Bearer {KEY}{SECRET}", "x-api-key": SECRET}
            await server.client.get("/v1/models", headers=wrong)
        entries = [entry for entry in log.objects if entry["logger"] == "server.access"]
    assert len(entries) == 3 * 9 + 1
    assert {entry["status"] for entry in entries} == {200, 400, 401, 404}
    assert SECRET not in log.getvalue()
    assert KEY not in log.getvalue()
