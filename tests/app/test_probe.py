"""`espalier probe`: whether this host's worker or reconciler is at work, without database and broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app import alive
from app.cli import cli
from app.settings import Settings, get_settings


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("ESPALIER_HOME", str(tmp_path))
    monkeypatch.setenv("ESPALIER_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/nothing")
    get_settings.cache_clear()
    yield get_settings()
    get_settings.cache_clear()


def probe(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["probe", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["keys list", "tenants list", "db current", "db upgrade", "db downgrade", "gc"])
def test_commands_of_a_database_that_is_away_say_so(here: Settings, command: str) -> None:
    result = CliRunner().invoke(cli, command.split())
    assert (result.exit_code, isinstance(result.exception, SystemExit)) == (1, True), result.exception
    assert "postgresql://nobody@127.0.0.1:9/nothing (ESPALIER_DATABASE_URL)" in result.output.replace("\n", "")


def test_says_whether_it_was_at_work_just_now(here: Settings) -> None:
    assert probe("worker")[0] == 1
    alive.beat(here, "worker")
    assert probe("worker")[0] == 0
    assert probe("reconciler")[0] == 1, "each has a file of its own"
    (path,) = here.work_dir.iterdir()
    os.utime(path, (path.stat().st_mtime - 90,) * 2)
    assert probe("worker")[0] == 1
    assert probe("worker", "--within", "120")[0] == 0
    assert probe("api")[0] == 2
