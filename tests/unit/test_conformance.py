"""The conformance run's own parts: how a call's end is judged, and what a script's end becomes."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.conformance import __main__ as runner
from tests.conformance import environments, report
from tests.conformance.clients import CLIENTS, SCRIPTS, Client
from tests.conformance.report import Row

CLIENT = Client("A client", "some_client.py", (), {"known": "for a reason | of its own"}, seconds=2)
SERVED = runner.SERVED[0]


@pytest.fixture
def calls() -> ModuleType:
    spec = importlib.util.spec_from_file_location("calls", SCRIPTS / "calls.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (runner, environments):
        monkeypatch.setattr(module, "KEPT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "clients.md")
    return tmp_path


class HttpError(Exception):
    """As the packages of OpenAI and Anthropic raise it."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status}")
        self.status_code = status
        self.body = body


@pytest.mark.parametrize(
    ("status", "body", "ends"),
    [
        (400, {"param": "n", "message": "too many"}, ("refused", "n: too many")),
        (400, {"error": {"param": "n", "message": "too many"}}, ("refused", "n: too many")),
        (400, {"param": None, "message": "something"}, ("failed", "HttpError: 400")),
        (500, {"param": "n", "message": "too many"}, ("failed", "HttpError: 500")),
        (400, "no JSON", ("failed", "HttpError: 400")),
        (
            400,
            {"type": "error", "error": {"message": "messages[1].content: too long"}},
            ("refused", "messages[1].content: too long"),
        ),
        (400, {"type": "error", "error": {"message": "Bad request"}}, ("failed", "HttpError: 400")),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_only_a_400_that_names_its_field_is_a_refusal(
    calls: ModuleType, status: int, body: Any, ends: tuple[str, str], wrapped: bool
) -> None:
    try:
        try:
            raise HttpError(status, body)
        except HttpError as error:
            if wrapped:
                raise ValueError("of the client") from error
            raise
    except Exception as error:
        found = calls.refused_or_failed(error)
    if wrapped and ends[0] == "failed":
        assert found == ("failed", "ValueError: of the client")
    else:
        assert found == ends


def test_every_call_is_made_and_one_that_hangs_is_ended(
    calls: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 1)
    monkeypatch.setattr(sys, "argv", ["script"])

    @calls.call("hangs")  # type: ignore[untyped-decorator]
    def hangs() -> None:
        while True:
            pass

    @calls.call("leaves")  # type: ignore[untyped-decorator]
    def leaves() -> None:
        sys.exit(3)

    @calls.call("waits")  # type: ignore[untyped-decorator]
    async def waits() -> str:
        return "two\nlines"

    calls.run()
    rows = [Row(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [(row.call, row.status) for row in rows] == [
        ("hangs", "failed"),
        ("leaves", "failed"),
        ("waits", "ok"),
    ]
    assert rows[0].detail == "TimeoutError: no end after 1 s"
    assert rows[2].detail == "two lines"


@pytest.mark.parametrize(
    ("code", "detail"),
    [
        ("import sys; sys.exit('no such package')", "ended with 1: no such package"),
        ("import time; print(LINE, flush=True); time.sleep(60)", "no end after 2 s"),
        ("pass", "no calls"),
    ],
)
def test_a_script_that_does_not_end_well_is_a_failed_row(
    kept: Path, code: str, detail: str
) -> None:
    line = '{"call": "first", "status": "ok", "detail": ""}'
    command = [sys.executable, "-c", f"LINE = {line!r}; {code}"]
    rows = runner.run(CLIENT, command, SERVED, kept, "http://127.0.0.1:1")
    assert ("first" in [row.call for row in rows]) == ("LINE" in code)
    assert rows[-1].call == "the script"
    assert rows[-1].status == "failed"
    assert detail in rows[-1].detail


def test_the_document_has_a_line_for_each_call_and_its_reason(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CLIENTS", (CLIENT,))
    report.remember(CLIENT, "one", [Row("chat", "failed", "old")])
    report.remember(CLIENT, "one", [Row("chat", "ok", ""), Row("known", "failed", "x")])
    two = [Row("chat", "refused", "n: <too> many"), Row("late", "ok", ""), Row("known", "ok", "")]
    report.remember(CLIENT, "two", two)
    introduction = kept / "introduction.md"
    introduction.write_text("# Clients\n")
    report.write_document(introduction)
    text = report.DOCUMENT.read_text()
    assert ("| A client | 1 of 2 work, 1 failed | 2 of 3 work, 1 refused | 3 of 3 work |") in text
    assert "| chat | works | refused | n: &lt;too> many |" in text
    assert "| known | **fails** | works | for a reason \\| of its own |" in text
    assert "old" not in text
    assert report.fine(CLIENT, Row("known", "failed", ""))
    assert not report.fine(CLIENT, Row("chat", "refused", "n: too many"))


def test_every_client_is_named_once_pinned_and_has_its_script() -> None:
    names = [client.name for client in CLIENTS]
    assert len(set(names)) == len(names)
    for client in CLIENTS:
        assert (SCRIPTS / client.script).is_file(), client.title
        if client.packages:
            assert re.search(r"[\w\]](==|@)\d", " ".join(client.packages)), client.title


def test_what_is_explained_are_calls_that_the_document_has() -> None:
    text = report.DOCUMENT.read_text(encoding="utf-8")
    for client in CLIENTS:
        section = text.partition(f"## {client.title}\n")[2].partition("\n## ")[0]
        missing = [call for call in client.explained if f"| {call} |" not in section]
        assert missing == [], client.title
