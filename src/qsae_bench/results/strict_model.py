"""Define the base of everything that is stored as JSON and read back."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Refuse unknown fields, conversions and NaN in everything that is read back from JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)
