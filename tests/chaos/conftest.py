"""The same clusters as the end-to-end tests use."""

from tests.e2e.conftest import cluster, redis

__all__ = ["cluster", "redis"]
