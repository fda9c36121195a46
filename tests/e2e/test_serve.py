"""`espalier serve`: one command, several processes, none of them left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
from pathlib import Path

import httpx2
import psutil
import pytest

from app import migrate
from app.cli.prepare import local_key
from app.db import Database
from app.keys import service as keys
from app.settings import Settings
from tests.helpers.cluster import eventually
from tests.helpers.embedded import ESPALIER, embedded, environment


def gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_it(tmp_path: Path, number: signal.Signals) -> None:
    with embedded(tmp_path) as service:
        family = eventually(
            lambda: f if len(f := service.family()) >= 4 else None, what="API, worker, its pool, reconciler"
        )
        service.process.send_signal(number)
        service.process.wait(timeout=30)
        assert service.process.returncode == (0 if number != signal.SIGKILL else -number)
        eventually(lambda: gone(family), 20, "all children end")


def test_a_child_that_dies_is_started_again_and_no_request_is_refused(tmp_path: Path) -> None:
    with embedded(tmp_path) as service:
        killed = service.child("uvicorn")
        assert killed
        killed.kill()
        # The listening socket belongs to `serve`: the request waits for the new API.
        assert httpx2.get(f"{service.url}/livez", timeout=30).status_code == 200
        fresh = service.child("uvicorn")
        assert fresh
        assert fresh.pid != killed.pid
        worker = service.child("celery")
        assert worker
        worker.kill()
        eventually(lambda: (c := service.child("celery")) and c.pid != worker.pid, 30, "the worker is back")


def test_the_local_key_is_kept_until_it_is_revoked(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    migrate.upgrade(settings.database_url)
    first = local_key(settings)
    assert local_key(settings) == first == (tmp_path / "local-key").read_text().strip()
    database = Database(settings.database_url)
    with database.write() as session:
        keys.revoke_key(session, keys.list_keys(session)[0][0].id)
    database.dispose()
    assert local_key(settings) != first


def test_a_taken_port_is_said_plainly(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [ESPALIER, "serve", "--port", port], env=environment(tmp_path), capture_output=True, text=True
        )
    assert (done.returncode, port in done.stderr) == (2, True)


def test_off_loopback_no_key_is_made(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [ESPALIER, "serve", "--host", "0.0.0.0", "--port", "0"],
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        banner = ""
        while "╰" not in banner:
            line = process.stdout.readline()
            assert line
            banner += line
        assert "no local key" in banner
        assert not (tmp_path / "local-key").exists()
    finally:
        process.kill()
        process.communicate(timeout=30)


def test_it_gives_up_on_what_cannot_start(tmp_path: Path) -> None:
    """A broker of a kind that does not exist: the worker crashes at once, again and again."""
    variables = environment(tmp_path) | {"ESPALIER_BROKER_URL": "nonsense://x"}
    done = subprocess.run(
        [ESPALIER, "serve", "--port", "0"], env=variables, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 1
    assert "5 times in a row" in done.stderr
