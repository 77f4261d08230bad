"""The `remix` command: it finds the commands that the rooms register and runs them.

A command is an entry point of the group `remix.commands` that points to a function annotated
for typer, or to a `typer.Typer` with several of them. The modules behind the entry points import
nothing heavy at their top, so that `remix --help` stays quick. What a user can cause ends in one
line on stderr and exit code 1.
"""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from remix_runtime.barriers import watch_barriers
from remix_runtime.errors import ConfigError, RemixError
from remix_runtime.threads import share_cores

GROUP = "remix.commands"

Command = Callable[..., Any]

# Any wrong use of the command line. typer has a click of its own and exports only this subclass.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """The console script."""
    share_cores()
    watch_barriers()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str], commands: Iterable[EntryPoint] | None = None) -> int:
    """Runs one command line; returns its exit code: 1 for an error, 2 for wrong usage."""
    if commands is None:
        commands = _called(arguments)
    try:
        code = build_app(commands)(arguments or ["--help"], "remix", standalone_mode=False)
    except typer.Abort:
        return 130
    except _UsageError as error:
        context = error.ctx
        message = " ".join(error.format_message().split())
        help_of = context.command_path if context else "remix"
        typer.echo(f"error: {message} (see `{help_of} --help`)", err=True)
        return 2
    return code if isinstance(code, int) else 0


def _called(arguments: Sequence[str]) -> Iterable[EntryPoint]:
    """The command that a line calls, so that it need not wait for the others' modules. All of them
    where it calls none that there is."""
    commands = entry_points(group=GROUP)
    called = next((argument for argument in arguments if argument != "--debug"), None)
    return [command for command in commands if command.name == called] or commands


def build_app(commands: Iterable[EntryPoint] | None = None) -> typer.Typer:
    """The root command with every entry point of the group, in alphabetical order.

    An entry point that cannot be imported stays visible and says so when it is called: one
    broken package must not take the other commands away.
    """
    if commands is None:
        commands = entry_points(group=GROUP)
    app = typer.Typer(
        help="Train ReMix adapters, check them, and serve many of them over one base model.",
        epilog="Start with:  remix demo-model",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    debug = False

    @app.callback()
    def root(
        debug_option: Annotated[
            bool,
            typer.Option("--debug", envvar="REMIX_DEBUG", help="Show the traceback of an error."),
        ] = False,
        _version: Annotated[
            bool,
            typer.Option(
                "--version", callback=_print_version, is_eager=True, help="Print the version."
            ),
        ] = False,
    ) -> None:
        nonlocal debug
        debug = debug_option

    for entry_point in sorted(commands, key=lambda entry_point: entry_point.name):
        loaded = _load(entry_point)
        if isinstance(loaded, typer.Typer):
            app.add_typer(_guarded(loaded, lambda: debug), name=entry_point.name)
        else:
            app.command(entry_point.name)(_errors_in_one_line(loaded, lambda: debug))
    return app


def _guarded(commands: typer.Typer, debug: Callable[[], bool]) -> typer.Typer:
    """A group of commands, and the groups in it, each command with its errors in one line."""
    group = typer.Typer(help=commands.info.help, no_args_is_help=True)
    for command in commands.registered_commands:
        assert command.callback is not None
        group.command(command.name)(_errors_in_one_line(command.callback, debug))
    for inner in commands.registered_groups:
        assert inner.typer_instance is not None
        group.add_typer(_guarded(inner.typer_instance, debug), name=inner.name)
    return group


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"remix-serve {version('remix-serve')}")
        raise typer.Exit


def _load(entry_point: EntryPoint) -> Command | typer.Typer:
    try:
        command: Command | typer.Typer = entry_point.load()
    except Exception as error:
        reason = f"command {entry_point.name!r} cannot be loaded: {error}"

        def command() -> None:
            raise ConfigError(reason)

        command.__doc__ = f"(not available) {reason}"
    return command


def _errors_in_one_line(command: Command, debug: Callable[[], bool]) -> Command:
    """`command`, with its errors as one line on stderr and exit code 1."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            if debug():
                traceback.print_exc(file=sys.stderr)
            typer.echo(f"error: {_one_line(error)}", err=True)
            raise typer.Exit(1) from None

    return guarded


def _one_line(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, (RemixError, OSError)):
        return message or type(error).__name__
    return f"internal error: {type(error).__name__}: {message} (run `remix --debug …` for more)"


if __name__ == "__main__":
    main()
