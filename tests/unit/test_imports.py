"""Commands import what they need, and no more; the collector does not look through it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from remix_runtime.imports import large_imports

HEAVY = (
    "torch",
    "transformers",
    "matplotlib",
    "datasets",
    "fastapi",
    "server",
    "pydantic_settings",
)


def imported(code: str) -> set[str]:
    """Which of `HEAVY` a new process has after `code`."""
    code = f"import sys\n{code}\nprint('have', *(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return set(done.stdout.rpartition("have")[2].split())


def test_no_command_waits_for_the_modules_of_others() -> None:
    assert imported("from remix_runtime.cli import run; run(['train', '--help'])") == set()
    assert (
        imported("from remix_runtime.cli import run; run(['--debug', 'check', '--help'])") == set()
    )
    assert "pydantic_settings" in imported(
        "from remix_runtime.cli import run; run(['serve', '--help'])"
    )


def test_a_run_imports_no_plots_and_no_data_sets_before_it_needs_them() -> None:
    assert imported("import training.run") == {"torch", "transformers"}


def test_an_adapter_is_checked_alone_without_transformers(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    code = "from remix_runtime.commands import check; from pathlib import Path\n"
    code += "from remix_runtime.errors import CheckpointError\n"
    code += f"try: check(Path({str(tmp_path)!r}))\nexcept CheckpointError as error: print(error)\n"
    assert imported(code) == {"torch"}


def test_what_is_imported_is_left_out_until_the_process_ends() -> None:
    code = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print('at the end', gc.get_freeze_count()))\n"
        "from remix_runtime.imports import large_imports\n"
        "try:\n"
        "    with large_imports():\n"
        "        print(gc.isenabled())\n"
        "        made = [[] for _ in range(9999)]\n"
        "        raise ImportError\n"
        "except ImportError:\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 9999)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "True True", "at the end 0"]


@pytest.mark.parametrize("loaded", [True, False], ids=["loaded", "switched off"])
def test_what_others_made_is_theirs_to_collect(
    loaded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = gc.get_freeze_count()
    if loaded:
        monkeypatch.setitem(sys.modules, "torch", sys)
    else:
        monkeypatch.delitem(sys.modules, "torch", raising=False)
        gc.disable()
    try:
        with large_imports():
            assert gc.isenabled() is loaded
        assert gc.isenabled() is loaded
    finally:
        gc.enable()
    assert gc.get_freeze_count() == before
