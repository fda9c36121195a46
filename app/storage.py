"""The artifact store: results and logs in a local directory, S3, Google or Azure storage. No other file builds paths.

    espalier-deployment                                         the id of the deployment the store belongs to
    espalier-restoring                                          the digest of the backup that is being restored into it
    {tenant}/{job}/{attempt:04}-{fence:06}/files/{path}         what a succeeded attempt leaves
                                          /logs/{n:06}.log      what any attempt said, in pieces, while it runs

A fence is given out once, so no two workers share a prefix: uploads of an attempt that lost its lease cannot touch its
successor's. A file that is equal to one of another job of the tenant is kept there only: app/jobs/results.py.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import obstore
from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

from app.text import legible

if TYPE_CHECKING:
    from obstore.store import RetryConfig

MARKER = "espalier-deployment"
RESTORING = "espalier-restoring"
ATOMIC_PUT_BYTES = 32 * 2**20
"""obstore holds the whole of an atomic create in memory (and S3 refuses more than 5 GB): larger files go in parts."""
PART_BYTES = 5 * 2**20
"""Of a part, all but the last; S3's own checksum of a file depends on it."""
READ_BYTES = 2**20
RETRIES: RetryConfig = {"max_retries": 5, "retry_timeout": timedelta(minutes=1)}

InUse = Callable[[Sequence[str]], Collection[str]]
"""Those of the keys that must stay."""

StorageError: type[Exception] = obstore.exceptions.BaseError
"""Exceptions of obstore when the storage refuses or does not answer; a local disk may raise OSError as well."""


class AlreadyStored(Exception):
    """The key is taken; keys are written once."""


class Damaged(Exception):
    """The bytes stored, or about to be, differ from those made."""


class ArtifactStore:
    """Keys to bytes. Safe to share between threads. Credentials and endpoints come from the usual AWS_*, GOOGLE_* and
    AZURE_* variables. Every method may raise StorageError or OSError.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        scheme, _, rest = url.partition("://")
        self._store: LocalStore | S3Store | GCSStore | AzureStore
        match scheme:
            case "file":
                self._store = LocalStore(Path(rest), mkdir=True, automatic_cleanup=True)
            case "s3":
                # Matters only where AWS_ENDPOINT_URL names a server of one's own without TLS.
                self._store = S3Store.from_url(url, client_options={"allow_http": True}, retry_config=RETRIES)
            case "gs":
                self._store = GCSStore.from_url(url, retry_config=RETRIES)
            case "az":
                self._store = AzureStore.from_url(url, retry_config=RETRIES)
            case _:
                raise ValueError(f"artifacts_url {url!r} is none of file:///…, s3://…, gs://…, az://…")

    # -- keys ----------------------------------------------------------------------------------------------------------

    def file_key(self, tenant_id: str, job_id: str, attempt: int, fence: int, path: str) -> str:
        return f"{_attempt(tenant_id, job_id, attempt, fence)}/files/{path}"

    def log_key(self, tenant_id: str, job_id: str, attempt: int, fence: int, n: int) -> str:
        return f"{_attempt(tenant_id, job_id, attempt, fence)}/logs/{n:06}.log"

    # -- whose it is ---------------------------------------------------------------------------------------------------

    def deployment(self) -> str | None:
        """The id of the deployment that the store belongs to; None while it carries none."""
        try:
            return legible(self.read(MARKER))
        except FileNotFoundError:
            return None

    def mark(self, deployment_id: str, *, replace: bool = False) -> None:
        """Make the store the deployment's. Raises AlreadyStored if it carries an id, unless that is to be replaced."""
        if replace:
            obstore.put(self._store, MARKER, deployment_id.encode())
        else:
            self.put_bytes(MARKER, deployment_id.encode())

    def is_empty(self) -> bool:
        """Whether there is no file where jobs keep theirs, two folders deep."""
        return all(key.count("/") < 2 for key in self._list(None))

    def restoring(self) -> str | None:
        """The backup whose restore into the store has begun and not ended, as `begin_restoring` named it."""
        try:
            return legible(self.read(RESTORING))
        except FileNotFoundError:
            return None

    def begin_restoring(self, backup: str) -> None:
        obstore.put(self._store, RESTORING, backup.encode())

    def end_restoring(self) -> None:
        self.delete([RESTORING])

    # -- write ---------------------------------------------------------------------------------------------------------

    def put_file(self, key: str, path: Path) -> None:
        """Store a file of any size, in parts when large. Raises AlreadyStored."""
        if path.stat().st_size <= ATOMIC_PUT_BYTES:
            return self.put_bytes(key, path.read_bytes())
        if self.size(key) is not None:  # not atomic with what follows; the fence in the key is what keeps others out
            raise AlreadyStored(key)
        obstore.put(self._store, key, path, use_multipart=True, chunk_size=PART_BYTES)

    def put_bytes(self, key: str, data: bytes) -> None:
        """Store bytes, atomically and only if the key is free. Raises AlreadyStored."""
        try:
            obstore.put(self._store, key, data, mode="create")
        except obstore.exceptions.AlreadyExistsError as error:
            raise AlreadyStored(key) from error

    def put_pieces(self, key: str, pieces: Iterable[bytes]) -> None:
        """Store what is made piece by piece, of any size; what was there is replaced."""
        with obstore.open_writer(self._store, key, buffer_size=PART_BYTES) as writer:
            for piece in pieces:
                writer.write(piece)

    def check_file(self, key: str, path: Path, sha256: str) -> None:
        """Raises Damaged unless `key` holds what `path` does, and that has the digest it was made with.

        By the store's own checksum where it has one that can be told from the content (S3's ETag), else by reading it.
        """
        made, e_tags = _checksums(path)
        if made != sha256:
            raise Damaged(f"{path.name} has changed on the worker's disk since it was made")
        try:
            found = obstore.head(self._store, key)
            if found["size"] != path.stat().st_size:
                raise Damaged(f"{path.name} has {path.stat().st_size} bytes, what is stored of it {found['size']}")
            if (found["e_tag"] or "").strip('"') in e_tags:
                return
            stored = hashlib.sha256()
            for piece in self.open_range(key, 0, found["size"]):
                stored.update(piece)
        except FileNotFoundError:
            raise Damaged(f"{path.name} is not in the store after it was put there") from None
        if stored.hexdigest() != sha256:
            raise Damaged(f"what is stored of {path.name} is not what was sent")

    # -- read ----------------------------------------------------------------------------------------------------------

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        return bytes(obstore.get(self._store, key).bytes())

    def size(self, key: str) -> int | None:
        """Bytes stored under `key`; None if nothing is."""
        try:
            return int(obstore.head(self._store, key)["size"])
        except FileNotFoundError:
            return None

    def open_range(self, key: str, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) in pieces of about 1 MiB. Raises FileNotFoundError at once, not at the first piece."""
        if start == end:
            return iter(())
        stream = obstore.get(self._store, key, options={"range": (start, end)}).stream(min_chunk_size=READ_BYTES)
        return (bytes(piece) for piece in stream)

    def read_log(self, tenant_id: str, job_id: str, attempt: int, fence: int, after: int = 0) -> Iterator[bytes]:
        """The attempt's log so far behind its first `after` bytes, piece by piece, oldest first. A store that does not
        answer raises at once, not at the first piece."""
        stored = sorted(self._sizes(f"{_attempt(tenant_id, job_id, attempt, fence)}/logs"))

        def pieces() -> Iterator[bytes]:
            left = after
            for key, size in stored:
                if left < size:
                    yield self.read(key)[left:]
                left = max(left - size, 0)

        return pieces()

    def tail_log(self, tenant_id: str, job_id: str, attempt: int, fence: int, lines: int) -> bytes:
        """The last `lines` >= 1 lines of the attempt's log so far, which end at a line feed and nowhere else; reads no
        more pieces than that takes."""
        pieces: list[bytes] = []
        ends = 0
        for key in reversed(self._log_keys(tenant_id, job_id, attempt, fence)):
            pieces.append(self.read(key))
            ends += pieces[-1].count(b"\n")
            if ends > lines:
                break
        text = b"".join(reversed(pieces))
        return b"\n".join(text.split(b"\n")[-lines - text.endswith(b"\n") :])

    # -- list and delete -----------------------------------------------------------------------------------------------

    def every_key(self) -> Iterator[str]:
        """Of everything that is stored."""
        return iter(self._list(None))

    def list_jobs(self) -> Iterator[tuple[str, str]]:
        """(tenant id, job id) of every job that has anything stored."""
        for tenant in obstore.list_with_delimiter(self._store)["common_prefixes"]:
            for job in obstore.list_with_delimiter(self._store, tenant)["common_prefixes"]:
                tenant_id, job_id = job.strip("/").split("/")
                yield tenant_id, job_id

    def delete_files(
        self, tenant_id: str, job_id: str, attempt: int, fence: int, in_use: InUse = lambda keys: ()
    ) -> None:
        """Delete what an attempt had uploaded, but for the keys that are in use; its log stays."""
        self._delete_prefix(f"{_attempt(tenant_id, job_id, attempt, fence)}/files", in_use)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete single objects; one that is not there is no error."""
        if keys:
            obstore.delete(self._store, keys)

    def delete_job(self, tenant_id: str, job_id: str, in_use: InUse = lambda keys: ()) -> None:
        self._delete_prefix(f"{tenant_id}/{job_id}", in_use)

    def job_keys(self, tenant_id: str, job_id: str) -> list[str]:
        return list(self._list(f"{tenant_id}/{job_id}"))

    # -- shared --------------------------------------------------------------------------------------------------------

    def _log_keys(self, tenant_id: str, job_id: str, attempt: int, fence: int) -> list[str]:
        return sorted(self._list(f"{_attempt(tenant_id, job_id, attempt, fence)}/logs"))

    def _list(self, prefix: str | None) -> Iterable[str]:
        return (path for path, _ in self._sizes(prefix))

    def _sizes(self, prefix: str | None) -> Iterable[tuple[str, int]]:
        """(key, bytes) of everything below the prefix."""
        for page in obstore.list(self._store, prefix):
            for entry in page:
                yield entry["path"], entry["size"]

    def _delete_prefix(self, prefix: str, in_use: InUse) -> None:
        keys = list(self._list(prefix))
        kept = set(in_use(keys)) if keys else set()
        self.delete([key for key in keys if key not in kept])


class AttemptFolder(NamedTuple):
    """Where an attempt keeps its files."""

    tenant_id: str
    job_id: str
    attempt: int
    fence: int


def attempt_of(key: str) -> AttemptFolder | None:
    """The attempt that uploaded the file; None of a key that is not of a file."""
    found = re.fullmatch(r"([^/]+)/([^/]+)/(\d+)-(\d+)/files/.+", key)
    return found and AttemptFolder(found[1], found[2], int(found[3]), int(found[4]))


def claim_of(key: str) -> int:
    """Number (fence) of the claim that stored the file or log; 0 of what no claim did."""
    found = re.match(r"[^/]+/[^/]+/\d+-(\d+)/", key)
    return int(found[1]) if found else 0


def _attempt(tenant_id: str, job_id: str, attempt: int, fence: int) -> str:
    return f"{tenant_id}/{job_id}/{attempt:04}-{fence:06}"


def _checksums(path: Path) -> tuple[str, set[str]]:
    """sha256 of a file, and what may be its ETag in S3: MD5 of all, or MD5 of its parts' MD5s and their number."""
    sha256, whole, parts = hashlib.sha256(), hashlib.md5(usedforsecurity=False), list[bytes]()
    with path.open("rb") as file:
        while part := file.read(PART_BYTES):
            sha256.update(part)
            whole.update(part)
            parts.append(hashlib.md5(part, usedforsecurity=False).digest())
    of_parts = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    return sha256.hexdigest(), {whole.hexdigest(), f"{of_parts}-{len(parts)}"}
