"""Runs mutmut in the current folder and writes `found.json`: how many mutants there are, how they
ended, and what those change that no test fails for.

A program of its own, started by its path in an environment of its own: with the package `tests`
imported, the copies that are tested would not be. mutmut leaves out every decorated function, since
its copies would be decorated too. Those whose decorators only change how they are called get
mutants like others here: their copies are plain functions.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.pop(0)  # this file's folder

import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.mutation import file_mutation, mutators
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

SHARED = (
    *("torch", "transformers", "safetensors.torch", "fastapi", "uvicorn", "httpx", "aiohttp"),
    *("sqlalchemy.ext.asyncio", "aiosqlite", "alembic.command", "prometheus_client", "fsspec"),
    *("pydantic_settings", "huggingface_hub", "llguidance"),
)
"""What is imported once for all processes: the packages of others that the tests import."""
CALLED_AS = ("property", "contextmanager")
CAUGHT = ("killed", "timeout", "segfault")
arrange = file_mutation.function_trampoline_arrangement


def is_plain(node: cst.CSTNode) -> bool:
    """Whether it is a function whose only decorator is one of `CALLED_AS`."""
    return (
        isinstance(node, cst.FunctionDef)
        and len(node.decorators) == 1
        and isinstance(name := node.decorators[0].decorator, cst.Name)
        and name.value in CALLED_AS
    )


class Visitor(file_mutation.MutationVisitor):
    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return not is_plain(node) and super()._skip_node_and_children(node)


def arranged(function: cst.FunctionDef, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    declared, methods, *rest = arrange(function, *args, **kwargs)
    if is_plain(function):
        first, *copies = methods
        methods = [first, *(copy.with_changes(decorators=[]) for copy in copies)]
    return declared, methods, *rest


def strings(node: cst.BaseString) -> Iterable[cst.BaseString]:
    """No mutants of sentences: what a message says is for people."""
    if isinstance(node, cst.SimpleString) and " " in node.raw_value:
        return ()
    return mutators.operator_string(node)


def operators() -> Sequence[tuple[Any, Any]]:
    return [
        (kind, strings if operator is mutators.operator_string else operator)
        for kind, operator in mutators.mutation_operators
    ]


def change(name: str, path: Path) -> dict[str, str]:
    """What a mutant changes: the lines that were, and what is there instead."""
    lines = get_diff_for_mutant(name, path=path).splitlines()[2:]
    was, becomes = (
        " ".join(line[1:].strip() for line in lines if line.startswith(sign)) for sign in "-+"
    )
    function = name.rpartition(".")[2].partition("__mutmut_")[0]
    function = function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return {"function": function, "was": was, "becomes": becomes}


def ended() -> Iterator[tuple[str, Path, str]]:
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, exit_code in data.exit_code_by_key.items():
            # mutmut takes it for a timeout, but it is pytest that could not begin.
            yield name, path, "failed" if exit_code == 255 else status_by_exit_code[exit_code]


def forget() -> None:
    """What an earlier run did not see killed is tried again, and which tests call what is found
    again: tests may have been added."""
    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, exit_code in data.exit_code_by_key.items():
            if status_by_exit_code[exit_code] != "killed":
                data.exit_code_by_key[name] = None
        if data.exit_code_by_key:
            data.save()


def main() -> None:
    file_mutation.MutationVisitor = Visitor  # type: ignore[misc]
    file_mutation.function_trampoline_arrangement = arranged  # type: ignore[assignment]
    file_mutation.mutation_operators = operators()
    (workers,) = sys.argv[1:]
    os.environ["TRITON_INTERPRET"] = "1"  # read when it is imported; tests/conftest.py says why
    for name in SHARED:
        importlib.import_module(name)
    forget()
    mutmut._run([], int(workers))
    found = list(ended())
    lived = [change(name, path) for name, path, status in found if status not in CAUGHT]
    counts = Counter(status for _, _, status in found)
    Path("found.json").write_text(json.dumps({"ended": counts, "survivors": lived}))


if __name__ == "__main__":
    main()
