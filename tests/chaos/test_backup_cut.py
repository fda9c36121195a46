"""Backups and restores that are killed half-way, or find the disk full: nothing is lost, nothing half-restored is
served, and the same command goes on. Real processes, and a real small disk where one may be mounted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, make_url, text
from starlette.testclient import TestClient

from app import deployment
from app.backup.backup import back_up
from app.backup.contents import place
from app.db import Database
from app.jobs import fleet
from app.main import create_app
from app.settings import Settings
from app.signing.keys import KeyRing
from app.storage import RESTORING, ArtifactStore
from tests.helpers.api import ROOT, W1, Api, make_key, others
from tests.helpers.backups import fresh_postgresql, fresh_sqlite, rows
from tests.helpers.command import espalier

pytestmark = pytest.mark.chaos
on_one = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
MIB = 2**20


@pytest.fixture
def worked(database_url: str, tmp_path: Path) -> Iterator[Api]:
    """A service with results, and rows in many tables."""
    settings = Settings(
        home=tmp_path / "home",
        database_url=database_url,
        secret_key="for tests only",
        models_dir=ROOT / "examples/models",
        data_dir=ROOT / "examples/data",
        log_level="error",
    )
    app = create_app(settings)
    with TestClient(app) as client:
        key, key_id, tenant_id = make_key(app.state.services, "ours")
        client.headers["Authorization"] = f"Bearer {key}"
        api = Api(client, app.state.services, key, key_id, tenant_id)
        with api.database.write() as session:
            fleet.make_known(session, W1, ttl_s=600)
        KeyRing(api.services.signing.path, make=True)
        for _ in range(2):
            api.succeeded(others())
        api.submit()
        api.services.relay.stop()  # rows are compared
        yield api


@pytest.fixture
def backup(worked: Api, tmp_path: Path) -> Path:
    keys = [key.kid for key in worked.services.signing.all()]
    back_up(worked.database, worked.services.store, place(str(tmp_path / "backup")), signing_keys=keys)
    return tmp_path / "backup"


@pytest.fixture
def target(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Settings:
    """Another home, with an empty database of the same kind."""
    if database_url.startswith("sqlite"):
        url = fresh_sqlite(tmp_path / "restored")
    else:
        url = fresh_postgresql(request.getfixturevalue("postgresql_server"))
    return Settings(home=tmp_path / "restored", database_url=url, secret_key="for tests only", log_level="error")


def environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "ESPALIER_HOME": str(settings.home),
        "ESPALIER_DATABASE_URL": settings.database_url,
        "ESPALIER_ARTIFACTS_URL": settings.artifacts_url,
        "ESPALIER_SECRET_KEY": settings.secret().decode(),
    }


def run(settings: Settings, *command: object, **more: str) -> tuple[int, str]:
    done = espalier(*command, env={**environment(settings), **more})
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


KILLED = """
import os, signal, sys
from app.cli import main
from app import migrate
from app.backup import backup, copying, rows

module, name, after = sys.argv[1], sys.argv[2], int(sys.argv[3])
module = {"copying": copying, "rows": rows, "migrate": migrate}[module]
real, calls = getattr(module, name), 0

def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(module, name, counted)
backup.AT_ONCE = 1
sys.argv = ["espalier", *sys.argv[4:]]
main()
"""


def killed(settings: Settings, where: tuple[str, str, int], *command: object) -> None:
    arguments = [str(each) for each in (*where, *command)]
    process = [sys.executable, "-c", KILLED, *arguments]
    done = subprocess.run(process, env=environment(settings), capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def contents(url: str) -> dict[str, list[Any]]:
    """Tables that have rows."""
    database = Database(url)
    found = {name: each for name, each in rows(database).items() if each}
    database.dispose()
    return found


def is_whole(worked: Api, target: Settings) -> None:
    """The restored deployment has all that was backed up, and a process would start on it."""
    assert contents(target.database_url) == contents(str(worked.services.settings.database_url))
    store, before = ArtifactStore(target.artifacts_url), worked.services.store
    assert {key: store.read(key) for key in store.every_key()} == {key: before.read(key) for key in before.every_key()}
    database = Database(target.database_url)
    assert deployment.check(database, store).startswith("dep_")
    database.dispose()


def is_not_served(target: Settings) -> None:
    """No process starts on it, and what is refused leaves no trace."""
    before = contents(target.database_url)
    for process in (["reconciler"], ["api", "--port", "0"]):
        code, said = run(target, *process)
        assert (code != 0, "cut short" in said) == (True, True), said
    code, said = run(target, "adopt-store", "--from", "dep_x")
    assert (code, "restore" in said or "schema" in said) == (2, True)
    code, said = run(target, "backup", target.home / "another")
    assert (code, "has not ended" in said or "schema" in said) == (2, True)
    assert contents(target.database_url) == before


CUTS = {
    "before the first file": ("copying", "copy", 0),
    "between two files": ("copying", "copy", 3),
    "before the schema": ("migrate", "to", 0),
    "between two tables": ("rows", "load", 5),
    "behind the rows": ("migrate", "upgrade", 1),
}


class TestKilled:
    @pytest.mark.parametrize("where", CUTS.values(), ids=CUTS)
    def test_a_restore_is_not_served_and_goes_on(
        self, worked: Api, backup: Path, target: Settings, where: tuple[str, str, int], tmp_path: Path
    ) -> None:
        killed(target, where, "restore", backup)
        is_not_served(target)
        there = {path for path in Path(target.home / "artifacts").rglob("*") if path.is_file()}
        written = {path: path.stat().st_mtime_ns for path in there if path.name != RESTORING}
        code, said = run(target, "restore", backup)
        assert code == 0, said
        is_whole(worked, target)
        assert {path: path.stat().st_mtime_ns for path in written} == written  # what was there stays
        assert run(target, "restore", backup)[0] == 2  # it is done, and not empty any more

    @on_one
    def test_a_restore_goes_on_with_the_same_backup_only_and_what_was_half_written_is_written_anew(
        self, worked: Api, backup: Path, target: Settings, tmp_path: Path
    ) -> None:
        killed(target, ("copying", "copy", 3), "restore", backup)
        back_up(worked.database, worked.services.store, place(str(tmp_path / "later")), signing_keys=["another"])
        code, said = run(target, "restore", tmp_path / "later")
        assert (code, "another backup" in said) == (2, True)
        halves = [path for path in (target.home / "artifacts").rglob("*") if path.is_file() and path.name != RESTORING]
        assert len(halves) == 3
        halves[0].write_bytes(halves[0].read_bytes()[:-1] + b"?")
        assert run(target, "restore", backup)[0] == 0
        is_whole(worked, target)

    @on_one
    def test_rows_of_others_are_no_half_of_a_restore(self, worked: Api, backup: Path, target: Settings) -> None:
        killed(target, ("copying", "copy", 3), "restore", backup)
        live = target.model_copy(update={"database_url": worked.services.settings.database_url})
        worked.submit()
        code, said = run(live, "restore", backup)
        assert (code, "database is not empty" in said) == (2, True)

    @pytest.mark.parametrize("where", [("copying", "copy", 2), ("copying", "write", 4)], ids=["files", "rows"])
    def test_a_backup_is_none(self, worked: Api, target: Settings, tmp_path: Path, where: tuple[str, str, int]) -> None:
        settings = worked.services.settings
        before = contents(str(settings.database_url))
        killed(settings, where, "backup", tmp_path / "cut")
        code, said = run(target, "restore", tmp_path / "cut")
        assert (code, "holds no complete backup" in said) == (2, True)
        assert not ArtifactStore(target.artifacts_url).restoring()
        code, said = run(settings, "backup", tmp_path / "cut")
        assert (code, "is not empty" in said) == (2, True)
        assert run(settings, "backup", tmp_path / "whole")[0] == 0
        assert contents(str(settings.database_url)) == before
        assert run(target, "restore", tmp_path / "whole")[0] == 0
        is_whole(worked, target)


class Disk:
    """A file system of its own, that has little room."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def mount(self, size: int) -> None:
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.folder], capture_output=True, text=True
        )
        if made.returncode:
            pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")

    def resize(self, size: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)


@pytest.fixture
def disk() -> Iterator[Disk]:
    if shutil.which("mount") is None:
        pytest.skip("no mount here")
    # Not below pytest's folders, which are barred to the user of PostgreSQL.
    made = Disk(Path(tempfile.mkdtemp(prefix="espalier-disk-")) / "disk")
    made.folder.parent.chmod(0o755)
    yield made
    if os.path.ismount(made.folder):
        subprocess.run(["umount", "--lazy", made.folder], check=True)
    shutil.rmtree(made.folder.parent)


@contextmanager
def on_tablespace(server: str, disk: Disk) -> Iterator[str]:
    """A database of PostgreSQL whose tables lie on the disk."""
    name, folder = f"t_{uuid.uuid4().hex[:12]}", disk.folder / "postgresql"
    folder.mkdir()
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        owner = Path(connection.execute(text("show data_directory")).scalar_one()).stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        connection.execute(text(f"create tablespace {name} location '{folder}'"))
        url = fresh_postgresql(server, name)
        yield url
        connection.execute(text(f"drop database {make_url(url).database} with (force)"))
        connection.execute(text(f"drop tablespace {name}"))
    engine.dispose()


@pytest.fixture
def large(worked: Api) -> Api:
    """8 MiB of rows that nothing compresses, and 4 of files."""
    worked.succeeded({"model.safetensors": os.urandom(4 * MIB)})
    with worked.database.write() as session:
        for job_id in session.execute(text("select id from jobs")).scalars().all():
            error = json.dumps({"message": os.urandom(MIB).hex()})
            session.execute(text("update jobs set error = :error where id = :id"), {"error": error, "id": job_id})
    return worked


class TestFullDisk:
    @on_one
    def test_a_backup_says_so_and_is_none(self, large: Api, target: Settings, disk: Disk, tmp_path: Path) -> None:
        disk.mount(2 * MIB)
        settings = large.services.settings
        code, said = run(settings, "backup", disk.folder / "b")
        assert (code, "No space left" in said, "Delete that" in said) == (1, True, True), said
        assert run(target, "restore", disk.folder / "b")[0] == 2
        assert run(settings, "backup", tmp_path / "b")[0] == 0

    @on_one
    def test_a_restore_goes_on_when_the_store_has_room(
        self, large: Api, backup: Path, target: Settings, disk: Disk
    ) -> None:
        disk.mount(2 * MIB)
        small = target.model_copy(update={"artifacts_url": f"file://{disk.folder}/store"})
        self.goes_on(large, backup, small, disk, 32)

    def test_a_restore_goes_on_when_the_database_has_room(
        self, large: Api, backup: Path, target: Settings, disk: Disk, request: pytest.FixtureRequest
    ) -> None:
        if target.database_url.startswith("sqlite"):
            disk.mount(2 * MIB)
            small = target.model_copy(update={"database_url": fresh_sqlite(disk.folder / "database")})
            return self.goes_on(large, backup, small, disk, 64)
        disk.mount(8 * MIB)
        server = request.getfixturevalue("postgresql_server")
        with on_tablespace(server, disk) as url:
            small = target.model_copy(update={"database_url": url})
            self.goes_on(large, backup, small, disk, 64)

    @on_one
    def test_a_restore_goes_on_when_the_folder_of_temporary_files_has_room(
        self, large: Api, backup: Path, target: Settings, disk: Disk
    ) -> None:
        disk.mount(2 * MIB)
        code, said = run(target, "restore", backup, TMPDIR=str(disk.folder))
        assert (code, "No space left" in said) == (1, True), said
        assert run(target, "restore", backup)[0] == 0
        is_whole(large, target)

    def goes_on(self, large: Api, backup: Path, small: Settings, disk: Disk, size: int) -> None:
        code, said = run(small, "restore", backup)
        assert (code, "has not ended" in said, "run the same command again" in said) == (1, True, True), said
        assert "No space left" in said or "disk is full" in said, said
        is_not_served(small)
        disk.resize(size * MIB)
        code, said = run(small, "restore", backup)
        assert code == 0, said
        is_whole(large, small)
