"""Small models for a runner, a warm parent to fork it, and a tenant for a job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.job_life import tenant
from tests.helpers.small_models import save_model, sources, tiny
from workers.warm import Warm

__all__ = ["save_model", "sources", "tenant", "tiny"]


@pytest.fixture(scope="session")
def parent() -> Iterator[Warm]:
    """One for all: it takes seconds to import what its runners need."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OMP_NUM_THREADS")  # the suite's own: libraries start as many threads as they do elsewhere
        parent = Warm()
    yield parent
    parent.close()
