"""A backup while a job is at work, restored into a database of the other kind, where the job is done to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.helpers.cluster import MAGNITUDE, ROOT, SLOW, Cluster, Redis, running

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]


def espalier(*arguments: str, env: dict[str, str]) -> str:
    command = [sys.executable, "-c", "from app.cli import main; main()", *arguments]
    ended = subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_running_job_goes_on_in_the_restored_service(
    cluster: Cluster, redis: Redis, postgresql_server: str, tmp_path: Path
) -> None:
    done = cluster.submit(MAGNITUDE)
    assert cluster.wait(done)["status"] == "succeeded"
    at_work = cluster.submit(SLOW)
    cluster.wait_for_event(at_work, "checkpoint")
    espalier("backup", str(tmp_path / "backup"), env=cluster.env)
    assert cluster.wait(at_work)["status"] == "succeeded"  # the first service was not disturbed
    report = cluster.http.get(f"/v1/jobs/{at_work}/report").json()
    home = tmp_path / "restored"
    other: dict[str, str] = {}
    if cluster.config.embedded:
        name = f"restored_{uuid.uuid4().hex[:12]}"
        engine = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"create database {name}"))
        engine.dispose()
        other = {
            "database_url": postgresql_server.replace("/postgres?", f"/{name}?"),
            "broker_url": redis.url[:-1] + "7",
        }
    settings = {"home": str(home), "secret_key": cluster.config.secret().decode(), **other}
    espalier("restore", str(tmp_path / "backup"), env={f"ESPALIER_{k.upper()}": v for k, v in settings.items()})
    again = Cluster(home, secret_key=settings["secret_key"], **other)
    again.http.headers["Authorization"] = cluster.http.headers["Authorization"]
    with running(again):
        assert again.job(done)["status"] == "succeeded"
        ended = again.wait(at_work)
        assert (ended["status"], ended["attempt"] > 1) == ("succeeded", True)
        found = again.http.get(f"/v1/jobs/{at_work}/report").json()
        assert found["layers"] == report["layers"]
