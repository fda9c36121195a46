"""Small models for a runner, a warm parent to fork it, and a tenant for a job."""

from __future__ import annotations

from tests.helpers.job_life import tenant
from tests.helpers.running import parent
from tests.helpers.small_models import save_model, sources, tiny

__all__ = ["parent", "save_model", "sources", "tenant", "tiny"]
