"""Publishers: kinds of places that results can be brought to, with what a client and an operator say of them.

A package of its own adds one by the entry point group `espalier.publishers`, whose objects are `Publisher`s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]


class Params(BaseModel):
    """A request of a client's. A publisher's own has `to: Literal[its name]`, and says where at the place."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    to: str
    credentials: Name = Field(
        description="Name of the credentials that the operator has set up; `GET /v1/credentials` lists them.",
        examples=["models"],
    )
    gates: Literal["pass", "any"] = Field(
        "pass",
        description="`pass`: only where the job's verdict is `pass`, or it has no gates. `any`: whatever the verdict.",
    )


class SecretRef(BaseModel):
    """Where a secret is read from whenever it is used: a variable of the process, or a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    env: str | None = None
    file: str | None = None


class Target(BaseModel):
    """A section of the operator's file: the place, and how to get in. A publisher's own has `to: Literal[its name]`.

    Fields of type SecretRef are read before `publish` is called, which finds them in `secrets`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: str
    tenants: list[str] = Field(min_length=1)
    """Names of those that may use it; `*` is all."""

    def refusal(self, params: Any, tenant: str) -> tuple[str, str] | None:
        """(field, reason) where nothing may be published so; None where it may."""
        return None


@dataclass(frozen=True)
class ResultFile:
    """A file of a result."""

    path: str
    bytes: int
    sha256: str
    open: Callable[[], BufferedIOBase]
    """From its beginning; can seek. Raises Stopped where the work is another's by now."""


@dataclass(frozen=True)
class Result:
    """The result of a job, with `manifest.json`, and `manifest.jws` where the service signs."""

    job_id: str
    tenant: str
    files: Sequence[ResultFile]
    manifest_sha256: str
    labels: dict[str, str]
    report: dict[str, Any]
    done: Callable[[int], None]
    """To be told of bytes that are there, sent now or before."""
    confirm: Callable[[], None]
    """To be called right before each change that others see at the place: renews the lease. Raises Stopped where the
    work is another's by now, as after a pause that was longer than the lease."""

    def file(self, path: str) -> ResultFile | None:
        return next((file for file in self.files if file.path == path), None)


class Published(NamedTuple):
    location: str
    """For people: a URL, without secrets."""
    revision: str
    """Of what is there now: a commit, a version, a digest."""
    changed: bool
    """False where all of it was there already."""


class PublishFailure(Exception):
    """It was not published. `code` is stable; the texts hold no secret."""

    def __init__(self, code: str, message: str, hint: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.hint, self.retryable = code, message, hint, retryable


class Stopped(Exception):
    """The publication was deleted, or another process has taken it up."""


T = TypeVar("T", bound=Target)
P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Publisher(Generic[T, P]):
    """A kind of place."""

    name: str
    target: type[T]
    params: type[P]
    publish: Callable[[T, P, Result, dict[str, str]], Published]
    """(target, params, result, secrets by field). The same result again changes nothing; what a killed try has brought
    there is not sent again. Whatever changes what others see comes right behind a `result.confirm()`.

    Raises PublishFailure, and Stopped."""
