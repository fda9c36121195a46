"""A running service on each backend."""

from tests.helpers.clusters import cluster, redis

__all__ = ["cluster", "redis"]
