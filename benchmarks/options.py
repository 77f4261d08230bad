"""Options that the scripts of this room share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from remix_runtime.demo_model import demo_model

Base = Annotated[
    Path,
    typer.Option(default_factory=demo_model, show_default="the demo model", help="Model folder."),
]
Out = Annotated[
    Path | None, typer.Option(help="Result path without ending; .json and .md are written there.")
]
