"""The signature of a manifest: `manifest.jws`, a compact JWS (RFC 7515) of a statement.

The statement names the manifest by its sha256, and the job and tenant that it is of. The manifest names every other
file by its own, so a signature covers all of a result; and one of another job, or of another kind of document, is not
taken for it.
"""

from __future__ import annotations

import json
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from app.signing.keys import SigningKey, decoded, encoded, public_key

KIND = "espalier-manifest"
ALGORITHM = "Ed25519"
"""RFC 9864."""


class Statement(BaseModel):
    """The signed part."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    manifest_sha256: str
    job_id: str
    tenant: str
    """Its name."""
    finished_at: str | None
    """The job's, ISO 8601."""


class NotVerified(Exception):
    """A signature that proves nothing; `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def sign(key: SigningKey, statement: Statement) -> bytes:
    """The bytes of `manifest.jws`: the same for the same key and statement."""
    header = {"alg": ALGORITHM, "kid": key.kid, "typ": KIND}
    signed = f"{_part(header)}.{_part(statement.model_dump())}"
    return f"{signed}.{encoded(key.sign(signed.encode()))}\n".encode()


def verified(jws: bytes, published: dict[str, Any]) -> tuple[Statement, dict[str, Any]]:
    """The statement and the published key that signed it. Raises NotVerified."""
    try:
        header_text, payload_text, signature_text = jws.decode("ascii").removesuffix("\n").split(".")
        header = json.loads(decoded(header_text))
        kid, named = header["kid"], (header["alg"], header["typ"])
        payload, signature = decoded(payload_text), decoded(signature_text)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotVerified("signature", "the signature cannot be read") from None
    if named != (ALGORITHM, KIND) or set(header) != {"alg", "kid", "typ"}:
        raise NotVerified("signature", "the signature is of another kind")
    key = _key(kid, published)
    try:
        Ed25519PublicKey.from_public_bytes(public_key(key)).verify(signature, f"{header_text}.{payload_text}".encode())
        return Statement.model_validate_json(payload), key
    except InvalidSignature:
        raise NotVerified("signature", f"the signature was not made by the key {kid} of this text") from None
    except (ValidationError, ValueError):
        raise NotVerified("signature", "the statement or the key cannot be read") from None


def _key(kid: Any, published: dict[str, Any]) -> dict[str, Any]:
    revoked = {each.get("kid"): each for each in published.get("revoked", [])}
    if isinstance(kid, str) and kid in revoked:
        raise NotVerified(
            "revoked_key",
            f"the key {kid} was revoked on {revoked[kid].get('revoked_at')}: download the result again, it is signed "
            "by the service's present key",
        )
    for key in published["keys"]:
        if key.get("kid") == kid:
            found: dict[str, Any] = key
            return found
    raise NotVerified("unknown_key", f"the key {kid!r:.100} is not among the published ones")


def _part(document: dict[str, Any]) -> str:
    return encoded(json.dumps(document, separators=(",", ":")).encode())
