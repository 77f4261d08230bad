"""A container with a server in it, as a file of the deployment has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import pytest
import typer

from remix_runtime.cli import build_app
from server.settings import ServerSettings, load_settings

DEFAULTS = ServerSettings.model_fields


@dataclass
class Served:
    """What it is given."""

    arguments: list[str]
    environment: dict[str, Any]
    writable: dict[str, str] = field(default_factory=dict)
    """What lasts, to where it is mounted."""
    read_only: dict[str, str] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """As the real command line reads them."""
        name, *arguments = self.arguments
        root = typer.main.get_command(build_app(entry_points(group="remix.commands")))
        command = root.commands[name]  # type: ignore[attr-defined]
        parsed: dict[str, Any] = command.make_context(name, list(arguments)).params
        return parsed

    def settings(self, monkeypatch: pytest.MonkeyPatch) -> ServerSettings:
        """Every REMIX_ variable must be one of them."""
        for name in self.environment:
            if name.startswith("REMIX_"):
                assert name.removeprefix("REMIX_").lower() in DEFAULTS, name
                monkeypatch.setenv(name, "given")
        return load_settings(**{k: v for k, v in self.options.items() if k in DEFAULTS})
