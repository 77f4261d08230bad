"""The root command: discovery, errors in one line, quick help."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from remix_runtime.cli import GROUP, build_app, run
from remix_runtime.errors import CheckpointFormatError

REMIX = Path(sys.executable).with_name("remix")


def fails(name: str, times: Annotated[int, typer.Option(help="How often.")] = 1) -> None:
    """Fails as a user's mistake does."""
    raise CheckpointFormatError(f"adapter_config.json: r: found {name} x{times},\nexpected 1..512")


def missing_file() -> None:
    """Fails as the operating system does."""
    Path("/no/such/file").read_text()


def broken() -> None:
    """Fails as a bug does."""
    raise ZeroDivisionError("boom")


def nothing() -> None:
    """Does nothing, well."""


def leaves() -> None:
    """Ends with its own exit code."""
    raise typer.Exit(3)


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setitem(sys.modules, "cli_commands_under_test", sys.modules[__name__])
    module = "cli_commands_under_test"
    names = ("fails", "missing_file", "broken", "leaves")
    commands = [entry(name.replace("_", "-"), f"{module}:{name}") for name in names]
    return build_app([*commands, entry("gone", "no_such_module:command")])


def test_user_error_is_one_line_and_exit_code_1(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["fails", "abc", "--times", "2"])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "error: adapter_config.json: r: found abc x2, expected 1..512\n"


def test_debug_adds_the_traceback(app: typer.Typer) -> None:
    by_flag = CliRunner().invoke(app, ["--debug", "fails", "abc"])
    by_variable = CliRunner(env={"REMIX_DEBUG": "1"}).invoke(app, ["fails", "abc"])
    for result in (by_flag, by_variable):
        assert result.exit_code == 1
        assert "Traceback" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: adapter_config.json")


def test_operating_system_error_is_one_line(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["missing-file"])
    assert result.exit_code == 1
    assert result.stderr == "error: [Errno 2] No such file or directory: '/no/such/file'\n"


def test_bug_is_named_as_internal_error(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["broken"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: internal error: ZeroDivisionError: boom")
    assert result.stderr.count("\n") == 1


def test_a_command_keeps_its_own_exit_code(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["leaves"]).exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fails", "abc", "--times", "many"], "--times"),
        (["fails"], "Missing argument"),
        (["fails", "abc", "--nope"], "--nope"),
        (["nope"], "No such command 'nope'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cli_commands_under_test", sys.modules[__name__])
        code = run(arguments, [entry("fails", "cli_commands_under_test:fails")])
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert message in err
    assert "--help`" in err


def test_exit_codes_of_the_console_script(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "cli_commands_under_test", sys.modules[__name__])
        commands = [
            entry(name, f"cli_commands_under_test:{name}")
            for name in ("fails", "leaves", "nothing")
        ]
        codes = [run([name], commands) for name in ("leaves", "nothing")]
        codes += [run(["fails", "abc"], commands), run([], commands)]
    assert codes == [3, 0, 1, 0]
    assert "Usage" in capsys.readouterr().out  # no arguments at all: the help


def test_unloadable_command_does_not_take_the_others_away(app: typer.Typer) -> None:
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0
    result = CliRunner().invoke(app, ["gone"])
    assert result.exit_code == 1
    assert "no_such_module" in result.stderr
    assert result.stderr.count("\n") == 1


def test_version_is_the_package_version() -> None:
    from importlib.metadata import version

    result = CliRunner().invoke(build_app([]), ["--version"])
    assert result.stdout == f"remix-serve {version('remix-serve')}\n"


@pytest.mark.parametrize("name", sorted(point.name for point in entry_points(group=GROUP)))
def test_every_command_has_help(name: str) -> None:
    result = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(build_app(), [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "not available" not in result.stdout
    described = [line for line in result.stdout.splitlines() if line.strip()]
    assert len(described) > 6, "a command says what it does and what its options are"


def callables() -> dict[str, Any]:
    """Every command by its name, those of groups too."""
    found = {}
    for point in entry_points(group=GROUP):
        loaded = point.load()
        if isinstance(loaded, typer.Typer):
            found |= {f"{point.name} {c.name}": c.callback for c in loaded.registered_commands}
        else:
            found[point.name] = loaded
    return found


@pytest.mark.parametrize("name", sorted(callables()))
def test_every_option_is_explained(name: str) -> None:
    import inspect
    import typing

    command = callables()[name]
    assert command.__doc__
    hints = typing.get_type_hints(command, include_extras=True)
    for parameter in inspect.signature(command).parameters:
        settings = list(getattr(hints[parameter], "__metadata__", ()))
        assert settings, f"{name}: {parameter} has no typer annotation"
        assert settings[0].help, f"{name}: {parameter} has no help text"


def test_help_imports_nothing_heavy_and_is_quick() -> None:
    heavy = ("torch", "transformers", "fastapi", "numpy", "matplotlib", "peft")
    code = (
        "import sys; from remix_runtime.cli import build_app; build_app(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

    def cpu_seconds() -> float:
        """Processor time of one call: unlike the wall's, it does not depend on other tests."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([REMIX, "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 1.5
