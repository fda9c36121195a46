"""Keys that sign manifests: Ed25519, in one file of the operator's, a private JWK set (RFC 7517, RFC 8037).

The file alone has the private halves; the database has none. A key signs until another takes its place; then its
private half is deleted and its public half stays published, so that what it signed is still verified. A revoked key is
published by its id alone, and verifies nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from app.files import write_once
from app.watched_file import Unreadable, WatchedFile

if TYPE_CHECKING:
    from app.settings import Settings

log = structlog.get_logger(__name__)


class BadKeys(Unreadable):
    """A file of keys that cannot be read, or a key that is not in it; says why."""


@dataclass(frozen=True)
class SigningKey:
    kid: str
    """The key's thumbprint (RFC 7638)."""
    public: bytes
    """32 bytes."""
    created_at: str
    """ISO 8601, UTC; the two below too."""
    private: bytes | None = None
    """32 bytes; None once it is retired or revoked."""
    retired_at: str | None = None
    revoked_at: str | None = None

    def sign(self, data: bytes) -> bytes:
        assert self.private is not None  # of the key that signs
        return Ed25519PrivateKey.from_private_bytes(self.private).sign(data)

    def published(self) -> dict[str, Any]:
        """The public half, as a JWK."""
        times = {"created_at": self.created_at, "retired_at": self.retired_at}
        return {**_jwk(self.public), "kid": self.kid, "use": "sig", "alg": "Ed25519", **times}

    def stored(self) -> dict[str, Any]:
        """With the private half, as the file has it."""
        secret = {} if self.private is None else {"d": encoded(self.private)}
        return {**self.published(), **secret, "revoked_at": self.revoked_at}


class KeyRing:
    """The file's keys, read again when it changes. Safe to share between threads."""

    def __init__(self, path: Path, *, make: bool) -> None:
        """With `make`, a first key is made where there is no file; else there are none then. Raises Unreadable."""
        self.path = path
        if make:
            write_once(path, _text([new_key()]), mode=0o600)
        self._keys: WatchedFile[list[SigningKey]] = WatchedFile(path, _read, [])

    def all(self) -> list[SigningKey]:
        """Oldest first. A file that cannot be read any more is said in the log, and its last keys stay."""
        return self._keys.content()

    def signs(self) -> SigningKey | None:
        """The key that signs now; None where there is none."""
        return next((key for key in reversed(self.all()) if key.private is not None), None)

    def published(self) -> dict[str, Any]:
        """The set as it is published: RFC 7517, with the revoked ones by their ids beside `keys`."""
        keys = self.all()
        return {
            "keys": [key.published() for key in keys if key.revoked_at is None],
            "revoked": [{"kid": key.kid, "revoked_at": key.revoked_at} for key in keys if key.revoked_at is not None],
        }

    def rotate(self) -> SigningKey:
        """Have a new key sign from now on, and retire the one that did."""
        made = new_key()
        retired = [replace(key, private=None, retired_at=_now()) if key.private else key for key in self.all()]
        self._write([*retired, made])
        return made

    def revoke(self, kid: str) -> SigningKey:
        """Have nothing more verified by that key. A new one signs where it was the one that did. Raises BadKeys."""
        keys = self.all()
        found = next((key for key in keys if key.kid == kid), None)
        if found is None:
            raise BadKeys(f"there is no key {kid}: `espalier signing-keys list` shows the ones there are")
        ended = found if found.revoked_at else replace(found, private=None, revoked_at=_now())
        changed = [ended if key is found else key for key in keys]
        self._write(changed if found.private is None else [*changed, new_key()])
        return ended

    def _write(self, keys: Sequence[SigningKey]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        fresh.touch(mode=0o600, exist_ok=False)
        try:
            with fresh.open("w") as file:
                file.write(_text(keys))
                file.flush()
                os.fsync(file.fileno())  # the only copy of a private key
            with suppress(OSError):  # an operator's own file otherwise, which the service cannot read
                before = self.path.stat()
                os.chown(fresh, before.st_uid, before.st_gid)
            fresh.replace(self.path)
        finally:
            fresh.unlink(missing_ok=True)


def key_ring(settings: Settings) -> KeyRing:
    """The service's keys; a first one is made in the home of an embedded service. Raises Unreadable."""
    ring = KeyRing(settings.signing_keys, make=settings.embedded and settings.signing_keys.parent == settings.home)
    if not ring.all():
        log.warning(
            "manifests_unsigned",
            path=str(ring.path),
            remedy="bring that file back (ESPALIER_SIGNING_KEYS), or make a key: `espalier signing-keys rotate`",
        )
    return ring


def new_key() -> SigningKey:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    return SigningKey(thumbprint(public), public, _now(), private.private_bytes_raw())


def thumbprint(public: bytes) -> str:
    """RFC 7638: of the members that make up the key, in the order of their names."""
    canonical = json.dumps(_jwk(public), sort_keys=True, separators=(",", ":")).encode()
    return encoded(hashlib.sha256(canonical).digest())


def encoded(data: bytes) -> str:
    """Base 64 as JOSE has it: for URLs, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """Raises ValueError."""
    if not text.isascii():
        raise ValueError("not ASCII")
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encoded(data) != text:  # two texts of the same bytes: of a signature there is one
        raise ValueError("not the shortest form")
    return data


def public_key(jwk: dict[str, Any]) -> bytes:
    """The 32 bytes of an Ed25519 key. Raises ValueError."""
    if jwk.get("kty") != "OKP" or jwk.get("crv") != "Ed25519":
        raise ValueError("no Ed25519 key")
    found = decoded(str(jwk.get("x", "")))
    Ed25519PublicKey.from_public_bytes(found)
    return found


def _jwk(public: bytes) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": encoded(public)}


def _read(path: Path) -> list[SigningKey]:
    try:
        document = json.loads(path.read_text())
        return [_key(jwk) for jwk in document["keys"]]
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadKeys(
            f"{path} is no set of signing keys ({type(error).__name__}): restore it, or make one with "
            "`espalier signing-keys rotate`"
        ) from None


def _key(jwk: dict[str, Any]) -> SigningKey:
    public = public_key(jwk)
    private = decoded(jwk["d"]) if jwk.get("d") and not (jwk.get("retired_at") or jwk.get("revoked_at")) else None
    if private and Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw() != public:
        raise ValueError("the halves of a key do not fit")
    return SigningKey(
        thumbprint(public),
        public,
        str(jwk.get("created_at") or _now()),
        private,
        jwk.get("retired_at"),
        jwk.get("revoked_at"),
    )


def _text(keys: Sequence[SigningKey]) -> str:
    return json.dumps({"keys": [key.stored() for key in keys]}, indent=2) + "\n"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
