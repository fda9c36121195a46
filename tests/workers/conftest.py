"""Small models for a runner, and a tenant for a job."""

from tests.helpers.job_life import tenant
from tests.helpers.small_models import save_model, sources, tiny

__all__ = ["save_model", "sources", "tenant", "tiny"]
