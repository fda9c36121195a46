"""The dashboard and the alert rules, on what a real Prometheus has scraped from the real service."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from app.metrics.collector import SERIES
from tests.helpers.cluster import MAGNITUDE, ROOT, SLOW, Cluster, eventually, free_port, running

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana/espalier.json").read_text())
BOUND = re.compile(r"\s*(?:>=|<=|==|!=|>|<)\s*[\d.]+\s*$")
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus here: .ci/prometheus"
)
pytestmark = [needs_prometheus, pytest.mark.xdist_group("web")]


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


def test_the_rules_are_sound_and_raise_what_they_should() -> None:
    assert promtool("check", "rules", ALERTS).returncode == 0
    tested = promtool("test", "rules", DEPLOY / "prometheus/alerts_test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_every_alert_is_tried_and_has_its_entry_in_the_runbook() -> None:
    tried = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    runbook = (ROOT / "docs/operations.md").read_text()
    for rule in rules():
        name = rule["alert"]
        assert re.search(rf"alertname: {name}\n\s+exp_alerts", tried), f"{name} is never raised in alerts_test.yml"
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert f"### {name}\n" in runbook


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def measures(alert: str) -> list[str]:
    """The sides of its comparisons that are measured: an alert at rest has no series itself."""
    parts = re.split(r"\n\s*and on \(\) ", alert.strip())
    return [re.sub(r"^absent\((.*)\)$", r"\1", BOUND.sub("", part)) for part in parts]


def shown() -> list[str]:
    """The dashboard's expressions, as Grafana asks them with all of every variable."""
    found = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "30s").replace("$__range", "30s")
            found.append(re.sub(r"\$(job|method|tenant)\b", ".*", expression))
    for variable in DASHBOARD["templating"]["list"]:
        if asked := re.fullmatch(r"label_values\((\w+), (\w+)\)", variable.get("definition", "")):
            found.append(f'{asked[1]}{{{asked[2]}!=""}}')
    return found


class Scraped:
    """A Prometheus that scrapes the service."""

    def __init__(self, http: httpx2.Client) -> None:
        self.http = http

    def ask(self, expression: str) -> list[float]:
        """The value of each series; none while it is starting."""
        try:
            answer = self.http.get("/api/v1/query", params={"query": expression}).raise_for_status().json()
        except httpx2.ConnectError:
            return []
        return [float(series["value"][1]) for series in answer["data"]["result"]]


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """After a job of each end, one of them while it was scraped."""
    home = tmp_path_factory.mktemp("prometheus")
    with running(Cluster(home / "service", metrics_tenants=True, max_attempts=1)) as service:
        late = service.submit(SLOW, deadline_s=1)
        assert service.wait(late)["error"]["code"] == "timeout"
        with prometheus(home, service) as found:
            eventually(lambda: found.ask("count_over_time(espalier_jobs[1m]) > 1"), 60, "it is scraped twice")
            assert service.wait(service.submit(MAGNITUDE))["status"] == "succeeded"
            ended = 'increase(espalier_job_duration_seconds_count{status="succeeded"}[1m])'
            eventually(lambda: found.ask("espalier_stored_bytes > 0"), 60, "the job's end is scraped")
            eventually(lambda: found.ask(ended), 60, "and again")
            yield found


@contextlib.contextmanager
def prometheus(home: Path, service: Cluster) -> Iterator[Scraped]:
    job = {
        "job_name": "espalier",
        "static_configs": [{"targets": [f"127.0.0.1:{service.config.port}"]}],
    }
    (home / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": [job], "rule_files": [str(ALERTS)]})
    )
    port = free_port()
    options = [f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/tsdb"]
    options += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(["prometheus", *options], stdout=log, stderr=log)
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            yield Scraped(http)
    finally:
        process.terminate()
        process.wait()


def test_every_expression_of_the_dashboard_returns_series(scraped: Scraped) -> None:
    assert len(shown()) > 30
    assert [expression for expression in shown() if not scraped.ask(expression)] == []


def test_what_every_alert_measures_returns_series(scraped: Scraped) -> None:
    measured = [part for rule in rules() for part in measures(rule["expr"])]
    assert len(measured) > len(rules())
    assert [expression for expression in measured if not scraped.ask(expression)] == []
    loaded = scraped.http.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules()}
    assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}


def test_the_figures_are_of_the_jobs_that_ran(scraped: Scraped) -> None:
    quantile = "histogram_quantile(0.5, sum by (le) (espalier_job_duration_seconds_bucket))"
    (median,) = scraped.ask(quantile)
    assert 0 < median < 300
    for stage, method in {"load": "none", "allocate": "uniform", "prune": "mask", "upload": "none"}.items():
        assert scraped.ask(f'espalier_stage_duration_seconds_count{{stage="{stage}", method="{method}"}}') != [], stage
    assert scraped.ask('espalier_queue_wait_seconds_count{tenant="tests"}') == [2.0]
    assert scraped.ask('espalier_job_failures_total{code="timeout"}') == [1.0]
    (used,) = scraped.ask('espalier_device_memory_used_bytes{device="host"}')
    assert used > 0


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    page = "\n".join(shown())
    assert [series.name for series in SERIES if series.name not in page] == []
