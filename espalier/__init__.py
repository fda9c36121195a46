"""The Python client of an espalier service.

    from espalier import Client

    with Client("https://espalier.example.org", api_key) as client:
        job = client.submit(spec, labels={"team": "search"})
        job.wait(timeout=3600).raise_unless_succeeded()
        job.download("pruned")

`AsyncClient` has the same methods, to be awaited. Knows nothing of the service's own code.
"""

from espalier.aio import AsyncClient, AsyncJob, AsyncJobRef, AsyncSweep, AsyncSweepRef
from espalier.errors import (
    APIError,
    Conflict,
    CorruptFile,
    DownloadRefused,
    EspalierError,
    Forbidden,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    ServiceUnwell,
    TooManyRequests,
    Unauthenticated,
    UnexpectedAnswer,
    Unreachable,
    UnsafePath,
    WaitTimeout,
)
from espalier.sync import Client, Job, JobRef, Sweep, SweepRef

__all__ = [
    "APIError",
    "AsyncClient",
    "AsyncJob",
    "AsyncJobRef",
    "AsyncSweep",
    "AsyncSweepRef",
    "Client",
    "Conflict",
    "CorruptFile",
    "DownloadRefused",
    "EspalierError",
    "Forbidden",
    "InvalidRequest",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobRef",
    "NotFound",
    "ServiceUnwell",
    "Sweep",
    "SweepRef",
    "TooManyRequests",
    "Unauthenticated",
    "UnexpectedAnswer",
    "Unreachable",
    "UnsafePath",
    "WaitTimeout",
]
