"""Objects in bodies that say how to answer."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from server.http.fields import Text

Effort = Annotated[Text, Field(max_length=32)]
"""How much a model should think, in the words of its template."""


class Setting(BaseModel):
    """Refuses a key that it does not have: left out, the answer would be another one."""

    model_config = ConfigDict(strict=True, extra="forbid")
