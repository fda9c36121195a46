"""One running service per backend for the whole module: SQLite with a broker of files, PostgreSQL with Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.helpers.cluster import Cluster, Redis, running

BACKENDS = [pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in ("embedded", "production")]
"""Several processes run the suite; the tests of one backend stay together, so that each cluster starts once."""


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    server = Redis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module", params=BACKENDS)
def cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    home: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "embedded":
        service = Cluster(home)
    else:
        server: str = request.getfixturevalue("postgresql_server")
        name = f"e2e_{request.module.__name__.rpartition('.')[2]}"
        engine = create_engine(server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"drop database if exists {name} with (force)"))
            connection.execute(text(f"create database {name}"))
        engine.dispose()
        url = server.replace("/postgres?", f"/{name}?")
        service = Cluster(home, database_url=url, broker_url=request.getfixturevalue("redis").url)
    with running(service):
        yield service
