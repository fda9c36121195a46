"""The asynchronous client. `espalier.sync` is generated from this package: see .ci/unasync.py."""

from espalier.aio.client import AsyncClient
from espalier.aio.jobs import AsyncJob, AsyncJobRef
from espalier.aio.sweeps import AsyncSweep, AsyncSweepRef

__all__ = ["AsyncClient", "AsyncJob", "AsyncJobRef", "AsyncSweep", "AsyncSweepRef"]
