"""Jobs that prune while they train, through the service, whose runner is killed at random steps of the training.

`make chaos` runs it, on both backends. Each job ends in the files of an undisturbed one.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest

from tests.helpers.cluster import MAGNITUDE, Cluster
from tests.helpers.training import jobs, training
from workers.engine.registry import Method

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
FIRST = {method.name: (method, target, parts) for method, target, parts in reversed(jobs())}
"""Of each method the first of its targets; tests/chaos/test_training.py has the others."""
STEPS, KILLS = 40, 5


@pytest.mark.parametrize(("method", "target", "parts"), [FIRST[name] for name in sorted(FIRST)], ids=sorted(FIRST))
def test_killed_at_random_steps_it_ends_in_the_same_files(
    method: Method, target: str, parts: dict[str, Any], cluster: Cluster
) -> None:
    params = training(method.name, steps=STEPS, evaluate_every=10)
    spec = {"model": MAGNITUDE["model"], "prune": parts["prune"], "train": params}
    undisturbed = cluster.wait(cluster.submit(spec), 600)
    assert undisturbed["status"] == "succeeded", undisturbed["error"]
    job_id = cluster.submit(spec, max_attempts=10)
    steps = sorted(random.Random(f"{method.name} {target}").sample(range(2, STEPS - 2), KILLS))
    for attempt, step in enumerate(steps, start=1):
        _kill_at(cluster, job_id, attempt, step)
    job = cluster.wait(job_id, 600)
    assert job["status"] == "succeeded", job["error"]
    assert job["attempt"] == 1 + KILLS, "each kill hit a training"
    assert _files(cluster, job_id) == _files(cluster, undisturbed["id"])


def _kill_at(cluster: Cluster, job_id: str, attempt: int, step: int) -> None:
    """Kill the runner of that attempt once it has done so many steps."""

    def there() -> dict[str, Any] | None:
        job = cluster.job(job_id)
        assert job["status"] in ("queued", "running"), "it ended before it could be killed"
        now = job["progress"] or {}
        trains = now.get("stage") == "train" and now["done"] >= step
        return job if job["status"] == "running" and job["attempt"] == attempt and trains else None

    cluster.eventually(there, 300, f"step {step} of attempt {attempt}")
    for runner in cluster.runners():
        runner.kill()
    time.sleep(0.2)


def _files(cluster: Cluster, job_id: str) -> dict[str, str]:
    """Path -> digest of what is loaded: the report and what names the job differ."""
    listed = cluster.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return {each["path"]: each["sha256"] for each in listed if each["path"].endswith((".safetensors", "config.json"))}
