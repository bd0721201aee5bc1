"""What every section of the configuration is: immutable, and strict about its keys."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StageConfig(BaseModel):
    """Base of every section: immutable, and no key that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
