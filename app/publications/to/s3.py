"""A prefix of a bucket that speaks S3, by obstore. A prefix that has a `manifest.json` has a whole result."""

from __future__ import annotations

import hashlib
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import obstore
from obstore.store import S3Store
from pydantic import Field, ValidationError

from app.publications.contract import (
    Params,
    Published,
    Publisher,
    PublishFailure,
    Result,
    ResultFile,
    SecretRef,
    Stopped,
    Target,
)
from app.publications.reading import pieces
from workers.engine.files.manifest import MANIFEST
from workers.engine.report import Manifest

if TYPE_CHECKING:
    from obstore.store import RetryConfig, S3Config, S3Credential

DIGEST = "espalier-sha256"
"""Metadata of an object: it is whole, and has this content."""
REPLACED = "manifest.json.replaced"
"""The manifest of a result that is giving way; gone when it has."""
PART_BYTES = 8 * 2**20
RETRIES: RetryConfig = {"max_retries": 4, "retry_timeout": timedelta(minutes=1)}
KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


class S3Params(Params):
    """A folder of a bucket."""

    to: Literal["s3"]
    path: Annotated[str, Field(max_length=300, pattern=f"^{KEY.pattern}$", examples=["bookworm/v3"])] = Field(
        description="Folder below the one that the credentials name."
    )
    replace: bool = Field(False, description="Whether a result of another content that is there already gives way.")


class S3Target(Target):
    to: Literal["s3"]
    url: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,62}(/[A-Za-z0-9._{}/-]*)?$")
    """`{tenant}` in it is the tenant's name."""
    endpoint: str | None = Field(None, pattern=r"^https?://\S+$")
    """Default: Amazon's."""
    region: str = "us-east-1"
    access_key_id: SecretRef
    secret_access_key: SecretRef
    session_token: SecretRef | None = None

    def refusal(self, params: S3Params, tenant: str) -> tuple[str, str] | None:
        if "{tenant}" in self.url and ("/" in tenant or not KEY.fullmatch(tenant)):  # `a/b` would be below tenant `a`
            return "credentials", "the tenant's name cannot be part of a path; ask the operator for other credentials"
        return None


def publish(target: S3Target, params: S3Params, result: Result, secrets: dict[str, str]) -> Published:
    """`manifest.json` goes first and comes last, so nobody takes half a result for one."""
    folder = f"{target.url.format(tenant=result.tenant).rstrip('/')}/{params.path}"
    store = _store(target, folder, secrets)
    manifest = result.file(MANIFEST)
    assert manifest is not None  # the deliverer has looked
    try:
        before = _read(store, MANIFEST)
        taken = before is not None and hashlib.sha256(before).hexdigest() != manifest.sha256
        if taken and not params.replace:
            raise PublishFailure(
                "destination_taken",
                f"{folder} holds another result",
                "Publish under another path, or with `replace`.",
            )
        earlier = before if taken else _read(store, REPLACED)
        if taken and before is not None:
            result.confirm()
            obstore.put(store, REPLACED, before)  # what has to go is known to the next, should this one be killed
            obstore.delete(store, [MANIFEST])
        sent = [_send(store, file, result) for file in (*(f for f in result.files if f is not manifest), manifest)]
        if earlier is not None:
            stale = _paths(earlier) - {file.path for file in result.files}
            result.confirm()
            obstore.delete(store, [*sorted(stale), REPLACED])
    except (Stopped, PublishFailure):
        raise
    except Exception as error:  # obstore's have no common type that mypy knows
        raise failure(error, folder) from error
    return Published(folder, f"sha256:{manifest.sha256}", any(sent))


def failure(error: Exception, folder: str) -> PublishFailure:
    """The meaning of an error of obstore's."""
    kinds = obstore.exceptions
    said = f"{folder}: {type(error).__name__}"
    if isinstance(error, kinds.PermissionDeniedError | kinds.UnauthenticatedError):
        return PublishFailure(
            "publish_refused", said, "The operator checks the keys of these credentials, and what they may write."
        )
    if isinstance(error, FileNotFoundError | kinds.NotFoundError):
        return PublishFailure("destination_missing", said, "The operator makes the bucket that these credentials name.")
    if isinstance(error, kinds.BaseError | OSError):
        if "InvalidAccessKeyId" in str(error) or "SignatureDoesNotMatch" in str(error):
            return PublishFailure("publish_refused", said, "The operator checks the keys of these credentials.")
        return PublishFailure("destination_unreachable", said, "It is tried again by itself.", retryable=True)
    raise error


def _store(target: S3Target, folder: str, secrets: dict[str, str]) -> S3Store:
    bucket, _, prefix = folder.removeprefix("s3://").partition("/")
    endpoint = target.endpoint or f"https://s3.{target.region}.amazonaws.com"

    def credentials() -> S3Credential:
        return {
            "access_key_id": secrets["access_key_id"],
            "secret_access_key": secrets["secret_access_key"],
            "token": secrets.get("session_token"),
            "expires_at": None,
        }

    # All of it is said: what is left out, the library takes from the variables of our own store.
    config: S3Config = {"endpoint": endpoint, "region": target.region, "virtual_hosted_style_request": False}
    return S3Store(
        bucket,
        prefix=prefix,
        config=config,
        client_options={"allow_http": endpoint.startswith("http://")},
        retry_config=RETRIES,
        credential_provider=credentials,
    )


def _send(store: S3Store, file: ResultFile, result: Result) -> bool:
    """Whether the file had to be sent."""
    if not _is_there(store, file):
        # Not by `put`: it would call what reads our own store while it runs the same library's event loop.
        writer = obstore.open_writer(store, file.path, attributes={DIGEST: file.sha256}, buffer_size=PART_BYTES)
        for piece in pieces(file, result):
            writer.write(piece)
        result.confirm()
        writer.close()  # before which nothing is there
        return True
    result.done(file.bytes)
    return False


def _is_there(store: S3Store, file: ResultFile) -> bool:
    try:
        found = obstore.get(store, file.path, options={"head": True})
    except FileNotFoundError:
        return False
    return int(found.meta["size"]) == file.bytes and dict(found.attributes).get(DIGEST) == file.sha256


def _read(store: S3Store, path: str) -> bytes | None:
    try:
        return bytes(obstore.get(store, path).bytes())
    except FileNotFoundError:
        return None


def _paths(manifest: bytes) -> set[str]:
    """Files that another result's manifest lists; none where it is none of ours."""
    try:
        return {entry.path for entry in Manifest.model_validate_json(manifest).files}
    except ValidationError:
        return set()


PUBLISHER: Publisher[Any, Any] = Publisher("s3", S3Target, S3Params, publish)
