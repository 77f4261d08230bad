"""What a wrong command line says."""

from __future__ import annotations

import pytest

from remix_runtime.cli import run


def told(capsys: pytest.CaptureFixture[str], *arguments: object, code: int | None = None) -> str:
    """Runs it. What it says is one line, and no bug of ours."""
    found = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert found == code if code is not None else found in (1, 2), captured
    assert all(line.endswith(" …") for line in captured.out.splitlines())  # what `train` begins
    *steps, error = captured.err.splitlines()
    assert all(step.startswith("INFO: server.") for step in steps)  # what `serve` begins
    assert error.startswith("error: ")
    assert "internal error" not in captured.err
    assert "Traceback" not in captured.err
    assert len(captured.err) < 1200
    return captured.err
