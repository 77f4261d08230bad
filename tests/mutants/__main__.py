"""`make test-mutants`: changes the code in small ways, one at a time; each time a test should fail.

It writes docs/results/mutants.md and ends with 1 when a module's score is too low, or a mutant
survives without a reason. With names of modules it runs those and keeps what earlier runs found for
the rest; what earlier runs of this checkout found killed, in functions that are as they were, is
not tried again (`.mutants/`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.mutants.modules import MODULES
from tests.mutants.report import LEAST, Found, recall, remember, write_document

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".mutants"
PYTHON = os.environ.get("REMIX_MUTANT_PYTHON", ROOT / ".venv-mutants" / "bin" / "python")
"""Of the environment that has mutmut."""
SECONDS = int(os.environ.get("REMIX_MUTANT_SECONDS", 30))
"""Seconds for a mutant's tests, beyond four times what they took before."""
WORKERS = os.environ.get("REMIX_MUTANT_WORKERS", "2")

SETTINGS = """
[tool.mutmut]
source_paths = ["server"]
only_mutate = ["{module}"]
also_copy = ["remix_runtime"]
do_not_mutate_patterns = ['^\\s*log\\.']
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = [
    "--hypothesis-seed=0", "-p", "no:cacheprovider", "-p", "no:xdist",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # plugins' packages are imported before
]
process_isolation = "forkserver"
timeout_multiplier = 4
timeout_constant = {seconds}
use_git_change_detection = false
"""


def prepare(module: str) -> Path:
    """A folder in which mutmut finds the project, and what to do with it."""
    folder = KEPT / Path(module).with_suffix("").name
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("server", "remix_runtime", "tests"):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(ROOT / name)
    settings = SETTINGS.format(
        module=module, tests=json.dumps(MODULES[module]), seconds=SECONDS / 4
    )
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
    return folder


def run(module: str) -> Found:
    folder = prepare(module)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [PYTHON, Path(__file__).with_name("tool.py"), WORKERS],
        cwd=folder,
        env=environment,
        check=True,
    )
    return Found.read(folder / "found.json")


def main() -> int:
    for module in sys.argv[1:] or MODULES:
        found = run(module)
        remember(module, found)
        print(f"{module}: {found.killed} of {found.mutants} killed, {found.score:.1%}")
    write_document()
    found = recall()
    low = [module for module, each in found.items() if each.score < LEAST]
    silent = [module for module, each in found.items() if each.without_reason(module)]
    print(f"score below {LEAST:.0%}: {', '.join(low) or 'none'}")
    print(f"with survivors that have no reason: {', '.join(silent) or 'none'}")
    return 1 if low or silent else 0


if __name__ == "__main__":
    raise SystemExit(main())
