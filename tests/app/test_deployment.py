"""Database, store and work folder belong together: fresh ones are bound, strangers' are refused, on both databases."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text
from starlette.testclient import TestClient
from typer.testing import CliRunner

from app import deployment
from app.cli import cli
from app.db import Database
from app.deployment import Deployment, Refused
from app.main import create_app
from app.settings import Settings, get_settings
from app.storage import MARKER, ArtifactStore
from tests.helpers.api import Api


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{tmp_path}/store")


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fill(store: ArtifactStore) -> None:
    store.put_bytes(store.file_key("ten_1", "job_1", 1, 1, "model.safetensors"), b"weights")


def forget_id(database: Database) -> None:
    with database.write() as session:
        session.execute(delete(Deployment))


def test_fresh_ones_get_one_id_however_many_processes_start_at_once(database: Database, store: ArtifactStore) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def process() -> None:
        start.wait()
        found.append(deployment.check(database, store))

    threads = [threading.Thread(target=process) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [store.deployment()] * 8


@pytest.mark.parametrize("died_after", ["the row", "the marker"])
def test_a_start_that_died_half_way_is_gone_on_with(database: Database, store: ArtifactStore, died_after: str) -> None:
    first = deployment.check(database, store)
    with database.write() as session:
        session.execute(text("update deployment set store_marked_at = null"))
    if died_after == "the row":
        store.delete([MARKER])
    else:
        fill(store)  # by a process that came after
    assert deployment.check(database, store) == first == store.deployment()


def test_a_process_that_meets_the_first_files_of_another_is_not_refused(
    database: Database, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw no marker; until it looked for files another process had marked the store and put some in."""
    is_empty = ArtifactStore.is_empty

    def slow(self: ArtifactStore) -> bool:
        monkeypatch.setattr(ArtifactStore, "is_empty", is_empty)
        deployment.check(database, store)
        fill(store)
        return self.is_empty()

    monkeypatch.setattr(ArtifactStore, "is_empty", slow)
    assert deployment.check(database, store) == store.deployment()


def test_an_empty_database_beside_a_full_store_is_refused(database: Database, store: ArtifactStore) -> None:
    fill(store)
    with pytest.raises(Refused, match="espalier adopt-store"):
        deployment.check(database, store)
    assert store.deployment() is None


def test_a_strangers_store_is_refused_with_both_ids(database: Database, store: ArtifactStore) -> None:
    store.mark("dep_other")
    with pytest.raises(Refused, match=r"belongs to deployment dep_other, this database to dep_[0-9a-f]{32}"):
        deployment.check(database, store)


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00", b"", b"\x1b[31m" + b"x" * 10_000, "dép".encode()],
    ids=["bytes", "empty", "long", "accents"],
)
def test_a_damaged_marker_is_refused_and_can_be_adopted(
    content: bytes, database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    store.put_bytes(MARKER, content)
    with pytest.raises(Refused, match="no deployment's id") as refused:
        deployment.check(database, store)
    assert len(str(refused.value)) < 1500
    assert str(refused.value).isprintable()
    (said,) = re.findall(r"`espalier adopt-store --from (.*)`", str(refused.value))
    (taken_from,) = shlex.split(said)
    mine = deployment.adopt(database, store, tmp_path / "work", taken_from=taken_from)
    assert store.deployment() == deployment.check(database, store) == mine


def test_an_established_database_with_another_empty_store_is_refused(
    database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    """A mistyped URL: the results would be missing."""
    deployment.check(database, store)
    elsewhere = ArtifactStore(f"file://{tmp_path}/mistyped")
    with pytest.raises(Refused, match="ESPALIER_ARTIFACTS_URL"):
        deployment.check(database, elsewhere)
    assert elsewhere.deployment() is None


def test_a_database_with_results_from_before_ids_is_not_bound_to_an_empty_store(api: Api, tmp_path: Path) -> None:
    api.succeeded()
    forget_id(api.database)
    with pytest.raises(Refused, match="adopt-store"):
        deployment.check(api.database, ArtifactStore(f"file://{tmp_path}/mistyped"))


def test_other_files_at_the_top_of_a_bucket_are_no_reason(database: Database, store: ArtifactStore) -> None:
    store.put_bytes("README", b"of the bucket")
    assert deployment.check(database, store) == store.deployment()


class TestWorkFolder:
    def test_is_marked_once_and_then_refused_to_others(self, tmp_path: Path) -> None:
        deployment.check_work_dir(tmp_path / "work", "dep_1")
        deployment.check_work_dir(tmp_path / "work", "dep_1")
        with pytest.raises(Refused, match="ESPALIER_WORK_DIR"):
            deployment.check_work_dir(tmp_path / "work", "dep_2")

    def test_a_damaged_marker_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / MARKER).write_bytes(b"\xff\xfe")
        with pytest.raises(Refused, match="no deployment's id"):
            deployment.check_work_dir(tmp_path, "dep_1")


class TestAdoption:
    @pytest.fixture
    def old(self, api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Api:
        """A service with a result, as before deployments had ids; the command line has its settings."""
        api.succeeded()
        api.services.store.delete([MARKER])
        forget_id(api.database)
        monkeypatch.setattr("app.settings.get_settings", lambda: settings)
        get_settings.cache_clear()
        return api

    def run(self, *arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == exit_code, result.output
        return result.output

    def test_is_asked_for_and_done_by_one_command_and_loses_nothing(self, old: Api, settings: Settings) -> None:
        folder = settings.home / "artifacts"
        before = files(folder)
        with pytest.raises(Refused, match="espalier adopt-store"):
            deployment.check(old.database, old.services.store)
        found = json.loads(self.run("adopt-store", "--json"))
        assert found["deployment"] == old.services.store.deployment()
        assert deployment.check(old.database, old.services.store) == found["deployment"]
        assert files(folder) == {**before, MARKER: found["deployment"].encode()}

    def test_of_anothers_store_names_the_other(self, old: Api) -> None:
        store = old.services.store
        store.mark("dep_other")
        assert "--from dep_other" in self.run("adopt-store", exit_code=2)
        self.run("adopt-store", "--from", "dep_wrong", exit_code=2)
        assert store.deployment() == "dep_other"
        self.run("adopt-store", "--from", "dep_other")
        assert deployment.check(old.database, store) == store.deployment() != "dep_other"


class TestApi:
    def test_does_not_start_on_a_strangers_store(self, settings: Settings) -> None:
        ArtifactStore(settings.artifacts_url).mark("dep_other")
        with pytest.raises(Refused, match="dep_other"), TestClient(create_app(settings)):
            pass

    def test_starts_without_a_store_and_looks_again(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        """As without a database: it serves what it can, and finds out later whose store it is."""
        monkeypatch.setattr(deployment, "START_WITHIN_S", 0.2)
        monkeypatch.setattr(deployment, "RETRY_S", 0.05)
        answers: list[Any] = [OSError("away")] * 8
        found = ArtifactStore.deployment

        def away(self: ArtifactStore) -> str | None:
            if answers:
                raise answers.pop()
            return found(self)

        monkeypatch.setattr(ArtifactStore, "deployment", away)
        with TestClient(create_app(settings)) as client:
            assert client.get("/livez").status_code == 200
            store = client.app.state.services.store  # type: ignore[attr-defined]
            done = threading.Event()
            for _ in range(200):
                if found(store) is not None:
                    break
                done.wait(0.05)
            assert found(store) is not None


def test_a_copied_store_is_the_same_store(database: Database, store: ArtifactStore, tmp_path: Path) -> None:
    first = deployment.check(database, store)
    shutil.copytree(tmp_path / "store", tmp_path / "moved")
    assert deployment.check(database, ArtifactStore(f"file://{tmp_path}/moved")) == first
