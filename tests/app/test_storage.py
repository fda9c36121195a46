"""The artifact store, on a local directory and on S3 as moto's server speaks it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store

from app import storage
from app.storage import AlreadyStored, ArtifactStore, Damaged

JOB = ("ten_1", "job_1")
ATTEMPT = (*JOB, 2, 3)


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    if request.param == "file":
        return ArtifactStore(f"file://{tmp_path}/a folder/artifacts")
    return ArtifactStore(f"{request.getfixturevalue('s3_bucket')}/some/prefix")


def test_keys_are_scoped_to_the_attempt_and_its_fence(store: ArtifactStore) -> None:
    assert store.file_key(*ATTEMPT, "a/b.bin") == "ten_1/job_1/0002-000003/files/a/b.bin"
    assert store.log_key(*ATTEMPT, 12) == "ten_1/job_1/0002-000003/logs/000012.log"


def test_what_was_put_can_be_read_whole_and_in_part(store: ArtifactStore, tmp_path: Path) -> None:
    content = os.urandom(3 * storage.READ_BYTES + 17)
    (tmp_path / "f").write_bytes(content)
    key = store.file_key(*ATTEMPT, "sub/f")
    store.put_file(key, tmp_path / "f")
    assert store.read(key) == content
    pieces = list(store.open_range(key, 0, len(content)))
    assert len(pieces) > 1
    assert b"".join(pieces) == content
    assert b"".join(store.open_range(key, 100, 2_000_000)) == content[100:2_000_000]
    assert list(store.open_range(key, 5, 5)) == []


def test_a_key_is_written_once(store: ArtifactStore, tmp_path: Path) -> None:
    key = store.file_key(*ATTEMPT, "f")
    store.put_bytes(key, b"first")
    (tmp_path / "f").write_bytes(b"second")
    for again in (lambda: store.put_bytes(key, b"second"), lambda: store.put_file(key, tmp_path / "f")):
        with pytest.raises(AlreadyStored):
            again()
    assert store.read(key) == b"first"


def test_a_large_file_goes_in_parts_and_is_also_written_once(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATOMIC_PUT_BYTES", 2**20)
    content = os.urandom(11 * 2**20)
    (tmp_path / "f").write_bytes(content)
    key = store.file_key(*ATTEMPT, "model.safetensors")
    store.put_file(key, tmp_path / "f")
    assert b"".join(store.open_range(key, 0, len(content))) == content
    with pytest.raises(AlreadyStored):
        store.put_file(key, tmp_path / "f")


def test_what_is_not_there(store: ArtifactStore) -> None:
    with pytest.raises(FileNotFoundError):
        store.read("ten_1/job_1/none")
    with pytest.raises(FileNotFoundError):
        store.open_range("ten_1/job_1/none", 0, 10)
    assert b"".join(store.read_log(*ATTEMPT)) == b""
    assert store.tail_log(*ATTEMPT, 5) == b""
    assert list(store.list_jobs()) == []
    store.delete_job(*JOB)


def test_logs_are_read_in_the_order_of_their_numbers(store: ArtifactStore) -> None:
    for n in (10, 9, 11):
        store.put_bytes(store.log_key(*ATTEMPT, n), f"{n}\n".encode())
    store.put_bytes(store.log_key(*JOB, 1, 1, 0), b"of another attempt\n")
    assert b"".join(store.read_log(*ATTEMPT)) == b"9\n10\n11\n"
    assert store.tail_log(*ATTEMPT, 2) == b"10\n11\n"


def test_a_tail_reads_no_more_than_it_needs(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(5):
        store.put_bytes(store.log_key(*ATTEMPT, n), f"a{n}\nb{n}\n".encode())
    read, keys = store.read, []
    monkeypatch.setattr(store, "read", lambda key: keys.append(key) or read(key))
    assert store.tail_log(*ATTEMPT, 2) == b"a4\nb4\n"
    assert store.tail_log(*ATTEMPT, 1) == b"b4\n"
    assert set(keys) <= {store.log_key(*ATTEMPT, n) for n in (3, 4)}


def test_a_progress_bar_is_one_line(store: ArtifactStore) -> None:
    """It goes back to its beginning again and again."""
    store.put_bytes(store.log_key(*ATTEMPT, 0), b"before\n10 %\r20 %\r30 %\nafter\n")
    assert store.tail_log(*ATTEMPT, 2) == b"10 %\r20 %\r30 %\nafter\n"


def test_deleting_files_keeps_the_log_and_other_attempts(store: ArtifactStore) -> None:
    other = (*JOB, 3, 4)
    for attempt in (ATTEMPT, other):
        store.put_bytes(store.file_key(*attempt, "x/y"), b"file")
        store.put_bytes(store.log_key(*attempt, 0), b"log\n")
    store.delete_files(*ATTEMPT)
    with pytest.raises(FileNotFoundError):
        store.read(store.file_key(*ATTEMPT, "x/y"))
    assert b"".join(store.read_log(*ATTEMPT)) == b"log\n"
    assert store.read(store.file_key(*other, "x/y")) == b"file"


def test_jobs_are_listed_and_deleted_one_by_one(store: ArtifactStore) -> None:
    jobs = {("ten_1", "job_1"), ("ten_1", "job_12"), ("ten_2", "job_1")}
    for tenant, job in jobs:
        for n in range(3):
            store.put_bytes(store.log_key(tenant, job, 1, 1, n), b"x")
    assert set(store.list_jobs()) == jobs
    store.delete_job("ten_1", "job_1")
    assert set(store.list_jobs()) == jobs - {("ten_1", "job_1")}


def test_paths_cannot_leave_the_store(store: ArtifactStore) -> None:
    with pytest.raises(ValueError, match="illegal"):
        store.put_bytes(store.file_key(*ATTEMPT, "../../../../etc/passwd"), b"x")


@pytest.mark.parametrize("url", ["", "/var/artifacts", "ftp://host/path", "https://host/path"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match="none of"):
        ArtifactStore(url)


def test_a_store_that_does_not_answer_raises_what_callers_catch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRIES", {"max_retries": 0})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises((storage.StorageError, OSError)):
        ArtifactStore("s3://bucket").put_bytes("key", b"x")


@pytest.mark.parametrize("size", [0, 1000, 11 * 2**20], ids=["empty", "small", "in-parts"])
def test_what_is_stored_is_compared_with_what_was_made(
    size: int, store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATOMIC_PUT_BYTES", 2**20)
    content = os.urandom(size)
    made, file, key = hashlib.sha256(content).hexdigest(), tmp_path / "f", store.file_key(*ATTEMPT, "f")
    file.write_bytes(content)
    store.put_file(key, file)
    store.check_file(key, file, made)
    if isinstance(store._store, S3Store):  # it has a checksum of its own: nothing is read back
        with monkeypatch.context() as patch:
            patch.setattr(ArtifactStore, "open_range", lambda *_: pytest.fail("read back"))
            store.check_file(key, file, made)
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]) if content else (b"more",):
        obstore.put(store._store, key, damaged)
        with pytest.raises(Damaged):
            store.check_file(key, file, made)
        assert store.size(key) == len(damaged)
    obstore.delete(store._store, key)
    with pytest.raises(Damaged, match="not in the store"):
        store.check_file(key, file, made)
    assert store.size(key) is None
    file.write_bytes(content + b"x")
    with pytest.raises(Damaged, match="changed on the worker's disk"):
        store.check_file(key, file, made)
