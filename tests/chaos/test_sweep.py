"""Sweeps of twelve jobs with two workers on PostgreSQL and Redis, some poisoned, processes killed meanwhile.

`make chaos` runs them. The others succeed or are stopped by the rule, once each, and the verdicts are the right ones.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, select, text

from app.jobs.models import Event
from tests.helpers.cluster import MAGNITUDE, ROOT, Cluster, Redis, eventually, running

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
SPARSITY = "/prune/sparsity"
SPARSITIES = (0.3, 0.9, 0.93, 0.96)
GROUPS = (
    {"/score/method": "magnitude"},
    {"/score/method": "wanda", "/calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 128}},
    {"/score/method": "wanda", "/calibrate": {"dataset": "short.txt", "samples": 4, "sequence_length": 64}},
)
SWEEP = {
    "spec": {
        **MAGNITUDE,
        "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 20}],
        "gates": [{"metric": "perplexity/heldout.txt", "max": 1.5}],
    },
    "list": [{**group, SPARSITY: sparsity} for group in GROUPS for sparsity in SPARSITIES],
    "stop": {"ascending": SPARSITY},
}
ONE_POISONED = {
    **SWEEP,
    "list": [{**GROUPS[1], SPARSITY: (3 + 5 * (number // 6)) / 10, "/calibrate/seed": number} for number in range(11)]
    + [{**GROUPS[2], SPARSITY: 0.3}],
    "stop": None,
}
"""Six mild, five harsh, and one that cannot be calibrated."""


@pytest.fixture
def cluster(postgresql_server: str, redis: Redis, tmp_path: Path) -> Iterator[Cluster]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "short.txt").write_text("Far too little to learn anything from. " * 3)
    for name in ("heldout.txt", "calibration.txt"):
        shutil.copy(ROOT / "examples/data" / name, data)
    engine = create_engine(postgresql_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text("drop database if exists chaos_sweep with (force)"))
        connection.execute(text("create database chaos_sweep"))
    engine.dispose()
    url = postgresql_server.replace("/postgres?", "/chaos_sweep?")
    with running(Cluster(tmp_path / "home", database_url=url, broker_url=redis.url, data_dir=data), workers=2) as made:
        yield made


def test_one_of_twelve_fails_and_eleven_succeed(cluster: Cluster, tmp_path: Path) -> None:
    response = cluster.http.post("/v1/sweeps", json=ONE_POISONED)
    assert response.status_code == 202, response.text
    url = response.headers["Location"]
    sweep = eventually(lambda: s if (s := cluster.http.get(url).json())["status"] == "completed" else None, 900)
    *good, poisoned = sweep["children"]
    assert poisoned["error"]["code"] == "dataset_too_short"
    assert [(c["status"], c["verdict"]) for c in good] == [("succeeded", "pass")] * 6 + [("succeeded", "fail")] * 5
    points = cluster.http.get(f"{url}/pareto").json()["points"]
    assert sorted(point["number"] for point in points) == list(range(11))
    page = cluster.http.get(f"{url}/pareto", headers={"Accept": "text/html"}).text
    assert page.count("<circle") >= 11
    assert "dataset_too_short" in page


def test_the_rule_stops_what_is_harsher(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    response = cluster.http.post("/v1/sweeps", json=SWEEP)
    assert response.status_code == 202, response.text
    url = response.headers["Location"]
    for name in ("worker0", "reconciler"):
        time.sleep(8)
        cluster.kill(name)
        cluster.processes[name].wait()
        cluster.start(name)
    sweep = eventually(lambda: s if (s := cluster.http.get(url).json())["status"] == "completed" else None, 900)
    elapsed_s = time.monotonic() - began

    children = sweep["children"]
    poisoned = children[8:]
    assert {child["error"]["code"] for child in poisoned} == {"dataset_too_short"}
    for group in (children[:4], children[4:8]):
        mild, harsh, *harsher = group
        assert (mild["status"], mild["verdict"]) == ("succeeded", "pass")
        assert (harsh["status"], harsh["verdict"]) == ("succeeded", "fail")
        # With two workers a larger one may have been through before the smaller one's verdict was there.
        for child in harsher:
            assert (child["status"], child["verdict"]) in (("succeeded", "fail"), ("cancelled", None))
            assert (child["stopped_by"] is None) == (child["status"] == "succeeded")
    with cluster.database.read() as session:
        succeeded = Counter(session.scalars(select(Event.job_id).where(Event.type == "succeeded")))
    assert succeeded == Counter(child["job_id"] for child in children if child["status"] == "succeeded")

    found = cluster.http.get(f"{url}/pareto").json()
    assert {point["number"] for point in found["points"]} == {
        child["number"] for child in children if child["status"] == "succeeded"
    }
    assert any(point["on_front"] for point in found["points"])
    assert "<circle" in cluster.http.get(f"{url}/pareto", headers={"Accept": "text/html"}).text
    with capsys.disabled():
        print("\n" + json.dumps({"counts": sweep["counts"], "elapsed_s": round(elapsed_s)}))  # noqa: T201
