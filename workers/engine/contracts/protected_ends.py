"""Blocks at either end that are never dropped, as the scores of Shortened LLaMA (Kim et al. 2024, arXiv:2402.02834)
have them. Import-light."""

from __future__ import annotations

from pydantic import Field

from workers.engine.contracts.params import MethodParams


class ProtectedEndsParams(MethodParams):
    """Base of scores that are too low at the ends: magnitudes and gradients are small there, and blocks matter most."""

    protect_first: int = Field(4, ge=0, le=1024, description="Blocks at the front that are never dropped.")
    protect_last: int = Field(2, ge=0, le=1024, description="Blocks at the back that are never dropped.")

    @property
    def protected(self) -> tuple[int, int]:
        return self.protect_first, self.protect_last
