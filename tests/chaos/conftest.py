"""A running service on each backend; small models, and a warm parent of runners."""

from tests.helpers.clusters import cluster, redis
from tests.helpers.running import parent
from tests.helpers.small_models import save_model, sources

__all__ = ["cluster", "parent", "redis", "save_model", "sources"]
