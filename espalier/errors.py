"""Every exception that the client raises.

EspalierError
├── Unreachable             no answer: connection refused, broken or too slow
├── UnexpectedAnswer        an answer that is none of this service's
├── APIError                an answer that refuses, a problem document (RFC 9457)
│   ├── InvalidRequest      400, 413, 415, 422: `field` and `errors` say where
│   ├── Unauthenticated     401
│   ├── Forbidden           403
│   ├── NotFound            404, 410
│   ├── Conflict            409, 412: the state does not allow it
│   ├── TooManyRequests     429, with `retry_after_s`
│   └── ServiceUnwell       5xx
├── JobFailed, JobCancelled how a job ended that should have succeeded
├── WaitTimeout             a wait that ended before the job did; a TimeoutError too
└── DownloadRefused         a file that does not get its name
    ├── CorruptFile         its bytes are not those announced
    └── UnsafePath          its name leads out of the folder
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espalier.documents.jobs import JobFailure


class EspalierError(Exception):
    """Base of all errors of the client. They can be pickled, so they come out of another process as they are."""

    remedy: str = ""
    """What to do about it, where that is known."""

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is made again from its message alone, which is not what these are made from.
        return _made_again, (type(self), self.args, self.__dict__)


class Unreachable(EspalierError):
    """The service gave no answer, after all retries."""

    def __init__(self, url: str, cause: Exception) -> None:
        super().__init__(f"{url}: {cause or type(cause).__name__}")
        self.url = url
        self.remedy = "Check the address (ESPALIER_URL) and that the service runs."


class UnexpectedAnswer(EspalierError):
    """The answer is not what this version knows: another server, or a service of another major version."""

    remedy = "Check the address (ESPALIER_URL), and the versions of client and service."


@dataclass(frozen=True)
class FieldError:
    """A wrong field."""

    pointer: str
    """JSON pointer into the body, or `?name` of a query parameter, `#name` of a header."""
    code: str
    detail: str
    allowed: list[str] | None
    """The valid values, where there are few."""


class APIError(EspalierError):
    """The service refused. Switch on `code`, which is stable."""

    def __init__(self, problem: dict[str, Any], *, retry_after_s: float | None = None) -> None:
        self.problem = problem
        """The problem document as the service sent it."""
        self.status = int(problem["status"])
        self.code = str(problem.get("code", f"http_{self.status}"))
        self.title = str(problem.get("title", ""))
        self.detail = str(problem.get("detail", ""))
        self.request_id: str | None = problem.get("request_id")
        """Names the request in the service's log."""
        self.errors = [
            FieldError(
                str(each.get("pointer", "")),
                str(each.get("code", "")),
                str(each.get("detail", "")),
                each.get("allowed"),
            )
            for each in _entries(problem.get("errors"))
        ]
        self.field = self.errors[0].pointer if self.errors else None
        """The first wrong field."""
        self.retry_after_s = retry_after_s
        """When the service expects to be ready for it."""
        self.remedy = self.errors[0].detail if self.errors else self.detail
        super().__init__(f"{self.title} ({self.code}): {self.detail}")


class InvalidRequest(APIError):
    """The request is wrong; `field`, `errors` and `remedy` say where and what to change."""


class Unauthenticated(APIError):
    """No key, or one that is not valid (ESPALIER_API_KEY)."""


class Forbidden(APIError):
    """The key lacks a scope, or the tenant has used up a quota."""


class NotFound(APIError):
    """There is no such thing, or it is another tenant's."""


class Conflict(APIError):
    """The state does not allow it; `problem["allowed"]` has what would be allowed."""


class TooManyRequests(APIError):
    """Too many requests, or as many jobs as the tenant may have."""


class ServiceUnwell(APIError):
    """The service failed, or is not ready."""


class JobFailed(EspalierError):
    """A job failed; `error` has code, message and hint."""

    def __init__(self, job_id: str, error: JobFailure) -> None:
        super().__init__(f"{job_id} failed: {error.message} ({error.code})")
        self.job_id = job_id
        self.error = error
        self.code = error.code
        self.field = error.field
        self.remedy = error.hint


class JobCancelled(EspalierError):
    """A job was cancelled."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"{job_id} was cancelled")
        self.job_id = job_id
        self.remedy = "`job.retry()` queues it again."


class WaitTimeout(EspalierError, TimeoutError):
    """A wait ended before what was waited for; that goes on."""


class DownloadRefused(EspalierError):
    """A file does not get its name."""


class CorruptFile(DownloadRefused):
    """Its bytes are not those that the service announced."""


class UnsafePath(DownloadRefused):
    """Its name leads out of the folder."""


def _made_again(kind: type[EspalierError], args: tuple[Any, ...], fields: dict[str, Any]) -> EspalierError:
    made = kind.__new__(kind, *args)
    made.__dict__.update(fields)
    return made


def _entries(errors: Any) -> list[dict[str, Any]]:
    """Those of a problem document that are what they should be: it may be of something between us and the service."""
    return [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []


BY_STATUS: dict[int, type[APIError]] = {
    **dict.fromkeys((400, 413, 414, 415, 422), InvalidRequest),
    401: Unauthenticated,
    403: Forbidden,
    **dict.fromkeys((404, 410), NotFound),
    **dict.fromkeys((409, 412), Conflict),
    429: TooManyRequests,
}


def api_error(problem: dict[str, Any], *, retry_after_s: float | None) -> APIError:
    """The exception for a problem document."""
    status = int(problem["status"])
    kind = ServiceUnwell if status >= 500 else BY_STATUS.get(status, APIError)
    return kind(problem, retry_after_s=retry_after_s)
