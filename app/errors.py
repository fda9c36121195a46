"""Errors of the service: one tree, one handler, RFC 9457 problem+json.

    AppError                      status, code, title
    ├── Unauthenticated 401   Forbidden 403   NotFound 404   NotAcceptable 406
    ├── InvalidTransition 409   IdempotencyConflict 422   PreconditionFailed 412
    ├── ArtifactLost 410   ArtifactRemoved 410
    ├── InvalidRequest 422   InvalidCursor 400   MalformedRequest 400
    ├── RangeNotSatisfiable 416   UnsupportedMediaType 415
    ├── QuotaExceeded 403   QuotaReached 429   TooManyRequests 429
    └── NotReady 503

`code` is stable: clients switch on it. `detail` says what is wrong and what to do about it.
"""

from __future__ import annotations

from typing import Any, ClassVar


class AppError(Exception):
    status: ClassVar[int] = 500
    code: str = "internal"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self, detail: str, *, code: str | None = None, headers: dict[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.headers = headers or {}
        self.extra = extra
        """Further members of the problem document, e.g. `errors`, `allowed`."""


class InvalidRequest(AppError):
    status, code, title = 422, "invalid_request", "The request is not valid"


class MalformedRequest(AppError):
    status, code, title = 400, "malformed_request", "The request cannot be read"


class UnsupportedMediaType(AppError):
    status, code, title = 415, "unsupported_media_type", "The body is not JSON"


class InvalidCursor(AppError):
    status, code, title = 400, "invalid_cursor", "The cursor is not valid"


class Unauthenticated(AppError):
    status, code, title = 401, "unauthenticated", "Authentication is required"


class Forbidden(AppError):
    status, code, title = 403, "forbidden", "The key may not do this"


class QuotaExceeded(AppError):
    status, code, title = 403, "quota_exceeded", "The tenant has used up a quota"


class QuotaReached(AppError):
    status, code, title = 429, "quota_reached", "The tenant has as many jobs as it may"


class TooManyRequests(AppError):
    status, code, title = 429, "rate_limited", "The tenant sends more requests than it may"


class NotFound(AppError):
    status, code, title = 404, "not_found", "There is no such resource"


class NotAcceptable(AppError):
    status, code, title = 406, "not_acceptable", "The representation asked for does not exist"


class InvalidTransition(AppError):
    status, code, title = 409, "invalid_transition", "The job's state does not allow this"


class ArtifactLost(AppError):
    status, code, title = 410, "artifact_lost", "The artifact store no longer has the file"


class ArtifactRemoved(AppError):
    status, code, title = 410, "artifact_removed", "A retention policy has removed the file"


class PreconditionFailed(AppError):
    status, code, title = 412, "precondition_failed", "The resource has changed"


class RangeNotSatisfiable(AppError):
    status, code, title = 416, "range_not_satisfiable", "The range lies outside the file"


class IdempotencyConflict(AppError):
    status, code, title = 422, "idempotency_conflict", "The Idempotency-Key was used for another request"


class NotReady(AppError):
    status, code, title = 503, "not_ready", "The service is not ready"
