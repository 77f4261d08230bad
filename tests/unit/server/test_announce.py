"""The line that `remix serve` prints to try it: valid in a shell, and its request is answered."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from remix_runtime.errors import InvalidRequestError
from server.commands import _announce
from tests.unit.server.harness import serving


def no_template(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    raise InvalidRequestError("this model has no chat template", param="messages")


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://[::1]:8000"])
async def test_the_printed_request_is_answered(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    template: bool,
    url: str,
) -> None:
    async with serving(tmp_path) as server:
        if not template:
            monkeypatch.setattr(server.engine.tokenizer, "apply_chat_template", no_template)
        _announce(server.services, url)
        hint = capsys.readouterr().out.splitlines()[1]
        command, address, *options = shlex.split(hint.removeprefix("Try: "))
        assert command == "curl"
        path = "/v1/chat/completions" if template else "/v1/completions"
        assert address == url + path
        # A bracket is a pattern of names to some shells.
        assert "[" not in url or f"'{address}'" in hint
        body = json.loads(options[options.index("-d") + 1])
        assert ("messages" in body, "prompt" in body) == (template, not template)
        answer = await server.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == "haiku"
