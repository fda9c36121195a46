"""A sweep of 100 children that keeps its front, on a real worker: bounded while it runs, and at its end."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cluster import WANDA, Cluster, eventually

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]
CHILDREN = 100
"""Of five sparsities by twenty lengths of the calibration text."""
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7)
SPEC = {
    **WANDA,
    "calibrate": {"dataset": "calibration.txt", "samples": 2, "sequence_length": 64},
    "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 16}],
}


def stored(cluster: Cluster) -> int:
    """Bytes in the store, logs and all."""
    return sum(path.stat().st_size for path in (cluster.home / "artifacts").rglob("*") if path.is_file())


def weights(cluster: Cluster, job_id: str) -> int:
    files = cluster.http.get(f"/v1/jobs/{job_id}/artifacts").json()["data"]
    return sum(file["bytes"] for file in files if file["path"].endswith(".safetensors"))


def test_a_sweep_stores_little_more_than_its_fronts_weights(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "home")
    try:
        cluster.start_all()
        # More calibration text, other weights: no two children are equal.
        grid = {"/prune/sparsity": list(SPARSITIES), "/calibrate/samples": list(range(1, 21))}
        sweep = cluster.http.post("/v1/sweeps", json={"spec": SPEC, "grid": grid, "retention": {"keep": "front"}})
        assert sweep.status_code == 202, sweep.text
        url = sweep.json()["links"]["self"]
        most = 0

        def completed() -> dict[str, Any] | None:
            nonlocal most
            with contextlib.suppress(FileNotFoundError):  # one that is being deleted
                most = max(most, stored(cluster))
            found = cluster.http.get(url).json()
            return found if found["status"] == "completed" else None

        found = eventually(completed, 3000, "the sweep ends")
        assert found["counts"] == {"succeeded": CHILDREN}
        points = cluster.http.get(f"{url}/pareto").json()["points"]
        front = {point["job_id"] for point in points if point["on_front"]}
        jobs = [child["job_id"] for child in found["children"]]
        eventually(lambda: {job for job in jobs if weights(cluster, job)} == front, 60, "the others are cleaned")
        of_front, at_end = sum(weights(cluster, job) for job in front), stored(cluster)
        print(  # noqa: T201
            f"{len(front)} of {CHILDREN} on the front; bytes: {of_front:,} of the front's weights, {at_end:,} stored "
            f"at the end ({at_end / of_front:.3f} of these), {most:,} at most meanwhile"
        )
        assert at_end < 1.2 * of_front
        for job in jobs:
            assert cluster.http.get(f"/v1/jobs/{job}/report").status_code == 200
    finally:
        cluster.stop()
