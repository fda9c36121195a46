"""PostgreSQL databases for tests. Emptying one takes a tenth of the time of making one from a template."""

from __future__ import annotations

import uuid

from sqlalchemy import Connection, NullPool, create_engine, text

MOST_GROWN_BYTES = 2**22


def named(server: str, name: str) -> str:
    """URL of a database of the server."""
    return server.replace("/postgres?", f"/{name}?")


class EmptyDatabases:
    """Databases as the template is, each taken by one test at a time."""

    def __init__(self, server: str, template: str) -> None:
        self.server, self.template = server, template
        self.engine = create_engine(server, isolation_level="AUTOCOMMIT")
        self._spare: list[str] = []
        self._tables, self._version, self._size = _look(named(server, template))

    def take(self) -> str:
        """URL of one."""
        if self._spare:
            return self._spare.pop()
        name = f"t_{uuid.uuid4().hex[:12]}"
        with self.engine.connect() as connection:
            connection.execute(text(f"create database {name} template {self.template}"))
        return named(self.server, name)

    def give_back(self, url: str) -> None:
        """Empty it for the next test. One whose tables are no longer the template's is not used again."""
        engine = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.execute(text("set lock_timeout = '30s'"))
            connection.execute(text(
                "select pg_terminate_backend(pid, 10000) from pg_stat_activity "
                "where datname = current_database() and pid <> pg_backend_pid()"
            ))  # fmt: skip
            if (_tables(connection), _head(connection)) == (self._tables, self._version):
                self._empty(connection)
                self._spare.append(url)

    def _empty(self, connection: Connection) -> None:
        """Delete the rows: new files for all tables and indices are ten times the work. Not of what has grown."""
        size = connection.execute(text("select pg_database_size(current_database())")).scalar_one()
        if size > self._size + MOST_GROWN_BYTES:
            connection.execute(text(f"truncate {', '.join(self._tables)} restart identity"))
            return
        deletes = "; ".join(f"delete from {name}" for name in self._tables)
        connection.execute(text(f"set session_replication_role = replica; {deletes}"))  # in any order
        connection.execute(text(
            "select setval(format('%I', sequencename)::regclass, start_value, false) from pg_sequences "
            "where last_value is not null"
        ))  # fmt: skip


def _look(url: str) -> tuple[list[str], str, int]:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        size = connection.execute(text("select pg_database_size(current_database())")).scalar_one()
        return _tables(connection), _head(connection), int(size)


def _tables(connection: Connection) -> list[str]:
    """All but the one with the version."""
    found = connection.execute(text("select tablename from pg_tables where schemaname = 'public' order by tablename"))
    return [name for name in found.scalars() if name != "alembic_version"]


def _head(connection: Connection) -> str:
    return str(connection.execute(text("select version_num from alembic_version")).scalar_one())
