"""Metrics and traces of the real service: dashboard and alert rules in a real Prometheus, spans at an OTLP receiver."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import yaml

from app.metrics.collector import SERIES
from tests.helpers.cluster import MAGNITUDE, ROOT, SLOW, Cluster, eventually, free_port, running
from tests.helpers.otlp import Received, Receiver, receiver

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"
DASHBOARD = json.loads((DEPLOY / "grafana/espalier.json").read_text())
BOUND = re.compile(r"\s*(?:>=|<=|==|!=|>|<)\s*[\d.]+\s*$")
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="no Prometheus here: .ci/prometheus"
)
pytestmark = pytest.mark.xdist_group("web")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""A client's place in its own trace."""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)


@needs_prometheus
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
            answer = self.http.get("/api/v1/query", params={"query": expression})
        except httpx2.ConnectError:
            return []
        if answer.status_code == 503:
            return []
        answer.raise_for_status()
        return [float(series["value"][1]) for series in answer.json()["data"]["result"]]


class Observed(NamedTuple):
    """A service that has run a job of each end."""

    service: Cluster
    receiver: Receiver
    done: dict[str, Any]
    failed: dict[str, Any]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    home = tmp_path_factory.mktemp("observed")
    service = Cluster(home / "service", metrics_tenants=True, max_attempts=1)
    with receiver() as received:
        service.env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": received.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with running(service):
            service.http.headers["traceparent"] = PARENT
            done = service.wait(service.submit(MAGNITUDE))
            assert done["status"] == "succeeded"
            failed = service.wait(service.submit(SLOW, deadline_s=1))
            assert failed["error"]["code"] == "timeout"
            del service.http.headers["traceparent"]
            yield Observed(service, received, done, failed)


@pytest.fixture(scope="module")
def scraped(observed: Observed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraped]:
    """After another job, which ended while it was scraped."""
    service = observed.service
    with prometheus(tmp_path_factory.mktemp("prometheus"), service) as found:
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
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            yield Scraped(http)
    finally:
        process.terminate()
        process.wait()


@needs_prometheus
def test_every_expression_of_the_dashboard_returns_series(scraped: Scraped) -> None:
    assert len(shown()) > 30
    assert [expression for expression in shown() if not scraped.ask(expression)] == []


@needs_prometheus
def test_what_every_alert_measures_returns_series(scraped: Scraped) -> None:
    measured = [part for rule in rules() for part in measures(rule["expr"])]
    assert len(measured) > len(rules())
    assert [expression for expression in measured if not scraped.ask(expression)] == []
    loaded = scraped.http.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert {rule["name"] for rule in loaded} == {rule["alert"] for rule in rules()}
    assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}


@needs_prometheus
def test_the_figures_are_of_the_jobs_that_ran(scraped: Scraped) -> None:
    quantile = "histogram_quantile(0.5, sum by (le) (espalier_job_duration_seconds_bucket))"
    (median,) = scraped.ask(quantile)
    assert 0 < median < 300
    for stage, method in {"load": "none", "allocate": "uniform", "prune": "mask", "upload": "none"}.items():
        assert scraped.ask(f'espalier_stage_duration_seconds_count{{stage="{stage}", method="{method}"}}') != [], stage
    assert scraped.ask('espalier_queue_wait_seconds_count{tenant="tests"}') == [3.0]
    assert scraped.ask('espalier_job_failures_total{code="timeout"}') == [1.0]
    (used,) = scraped.ask('espalier_device_memory_used_bytes{device="host"}')
    assert used > 0


def test_every_metric_of_ours_is_on_the_dashboard_and_in_the_documentation(observed: Observed) -> None:
    page, documented = "\n".join(shown()), (ROOT / "docs/operations.md").read_text()
    families = re.findall(r"^# TYPE (espalier_\w+?)(?:_total)? ", observed.service.http.get("/metrics").text, re.M)
    names = {name for name in families if not name.endswith("_created")}  # when a process began to count
    assert {series.name for series in SERIES} <= names
    assert len(names) > len(SERIES) + 10
    assert [name for name in sorted(names) if name not in page] == []
    assert [name for name in sorted(names) if name not in documented] == []


def test_a_trace_leads_from_the_request_to_the_stages(observed: Observed) -> None:
    done, failed, spans = observed.done, observed.failed, observed.receiver.spans

    def attempts() -> dict[str, Received]:
        return {span.attributes["espalier.job_id"]: span for span in spans if span.name == "attempt"}

    eventually(lambda: len(attempts()) >= 2, 30, "the spans of two attempts arrive")
    assert done["trace_id"] == failed["trace_id"] == PARENT.split("-")[1]
    attempt = attempts()[done["id"]]
    (request,) = [span for span in spans if span.span_id == attempt.parent_id]
    assert (request.service, request.name) == ("espalier-api", "POST /v1/jobs")
    assert (request.trace_id, request.parent_id) == tuple(PARENT.split("-")[1:3])
    (queued,) = [span for span in spans if span.name == "queued" and span.parent_id == request.span_id]
    assert queued.start_ns <= queued.end_ns == attempt.start_ns
    assert (attempt.failed, attempt.attributes["espalier.outcome"]) == (False, "succeeded")
    stages = sorted((span for span in spans if span.parent_id == attempt.span_id), key=lambda span: span.start_ns)
    names = [span.name for span in stages]
    assert (names[0], names[-2:], {"allocate", "prune"} <= set(names)) == ("load", ["package", "upload"], True)
    assert not any(span.failed for span in stages)
    for before, after in pairwise(stages):
        assert abs(after.start_ns - before.end_ns) < 50_000_000
    assert attempt.start_ns <= stages[0].start_ns
    assert stages[-1].end_ns <= attempt.end_ns
    lost = attempts()[failed["id"]]
    assert (lost.failed, lost.attributes["espalier.error_code"]) == (True, "timeout")


def test_the_trace_stands_in_the_logs(observed: Observed) -> None:
    for process in ("api", "worker0"):
        lines = (observed.service.home / f"{process}.log").read_text().splitlines()
        said = [json.loads(line) for line in lines if line.startswith("{")]
        assert observed.failed["trace_id"] in {line.get("trace_id") for line in said}, process


def test_probes_and_scrapes_are_not_traced(observed: Observed) -> None:
    assert observed.service.http.get("/readyz").status_code == 200
    assert observed.service.http.get("/v1/jobs").status_code == 200
    eventually(lambda: [span for span in observed.receiver.spans if span.name == "GET /v1/jobs"], 30, "it arrives")
    assert {span.name for span in observed.receiver.spans}.isdisjoint({"GET /readyz", "GET /metrics", "GET /livez"})
