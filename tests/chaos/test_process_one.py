"""Workers that are all process 1, as in containers, on one volume: stopping one is no business of the others.

`make chaos` runs it, where Linux lets us make PID namespaces (root, or user namespaces with their own PID ones).
"""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.helpers.cluster import SLOW, Cluster, eventually

OWN_PIDS = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def _namespaces() -> bool:
    try:
        return subprocess.run([*OWN_PIDS, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = [
    pytest.mark.chaos,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not _namespaces(), reason="needs `unshare --pid --mount-proc`: Linux, and root"),
]


def start_as_one(cluster: Cluster, name: str) -> psutil.Process:
    """A worker whose main process is process 1 of its namespace."""
    unshare = cluster.start(name, within=OWN_PIDS)
    [main] = eventually(lambda: psutil.Process(unshare.pid).children(), 10, "unshare has forked")
    pids = Path(f"/proc/{main.pid}/status").read_text()
    assert next(line for line in pids.splitlines() if line.startswith("NSpid:")).split()[-1] == "1"
    return main


def outcomes(cluster: Cluster, job_id: str) -> list[str]:
    return [a["outcome"] for a in cluster.http.get(f"/v1/jobs/{job_id}/attempts").json()["data"]]


def test_stopping_one_hands_back_its_job_and_no_other(cluster: Cluster) -> None:
    cluster.kill("worker0", signal.SIGTERM)
    cluster.processes["worker0"].wait(timeout=30)
    first = start_as_one(cluster, "worker1")
    start_as_one(cluster, "worker2")
    jobs = [cluster.submit(SLOW, max_attempts=1) for _ in range(2)]
    for job_id in jobs:
        cluster.wait_for_event(job_id, "checkpoint", 600, block=0)

    first.send_signal(signal.SIGTERM)
    cluster.processes["worker1"].wait(timeout=120)
    for job_id in jobs:
        assert cluster.wait(job_id, 900)["status"] == "succeeded"
    assert sorted(outcomes(cluster, job_id) for job_id in jobs) == [["released", "succeeded"], ["succeeded"]]

    # One that dies while it is stopping leaves nothing behind that stops the next, nor the one that lives.
    dying = start_as_one(cluster, "worker3")
    jobs = [cluster.submit(SLOW) for _ in range(2)]
    for job_id in jobs:
        cluster.wait_for_event(job_id, "checkpoint", 600, block=0)
    dying.send_signal(signal.SIGTERM)
    dying.kill()
    cluster.processes["worker3"].wait(timeout=120)
    start_as_one(cluster, "worker4")
    jobs.append(cluster.submit(SLOW))
    for job_id in jobs:
        assert cluster.wait(job_id, 900)["status"] == "succeeded"
    found = sorted(outcomes(cluster, job_id) for job_id in jobs)
    assert found[-1] == ["succeeded"]
    assert ["released", "released"] not in found
    for name in ("worker2", "worker4"):
        assert cluster.processes[name].poll() is None
