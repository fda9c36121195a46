"""A job killed in the middle of its tuning goes on from the last resume point and ends in the same bytes.

`make chaos` runs it: resume points are a minute apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import MAGNITUDE, Cluster
from tests.helpers.results import job_digests, verify

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
TUNED: dict[str, Any] = {
    **MAGNITUDE,
    "prune": {"method": "structured", "sparsity": 0.5, "compensate": False},
    "tune": {"method": "lora", "dataset": "calibration.txt", "steps": 300, "batch": 4, "sequence_length": 128},
}


def test_a_runner_killed_while_tuning(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job_id = cluster.submit(TUNED)
    saved = cluster.eventually(lambda: next(iter(steps(cluster, job_id)), None), 600, "a step is durable")
    for runner in cluster.runners():
        runner.kill()
    assert cluster.wait(job_id, 900)["status"] == "succeeded"
    undisturbed = cluster.submit(TUNED)
    assert cluster.wait(undisturbed, 900)["status"] == "succeeded"

    events = cluster.events(job_id)
    assert any(e["type"] == "queued" and e["data"].get("reason") == "runner_died" for e in events)
    resumed = [e["data"]["step"] for e in events if e["type"] == "resume" and "step" in e["data"]]
    assert len(resumed) == 1
    assert saved["step"] <= resumed[0] < TUNED["tune"]["steps"]
    digests, reports = [], []
    for found in (job_id, undisturbed):
        folder = tmp_path / found
        folder.mkdir()
        verify(cluster, found, folder)
        digests.append(job_digests(folder))
        reports.append(json.loads((folder / "report.json").read_text())["tune"])
    assert digests[0] == digests[1]
    assert reports[0]["curve"] == reports[1]["curve"]
    with capsys.disabled():
        print("\n" + json.dumps({"resumed_step": resumed[0], "loss": [r["holdout_loss_after"] for r in reports]}))  # noqa: T201


def steps(cluster: Cluster, job_id: str) -> list[dict[str, Any]]:
    """Every resume point of the tuning, by its events."""
    return [e["data"] for e in cluster.events(job_id) if e["type"] == "checkpoint" and "step" in e["data"]]
