"""The release pipeline of docs/release-pipeline.md, run as it stands beside a real embedded service."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml

from tests.helpers.cluster import MAGNITUDE, ROOT
from tests.helpers.embedded import ESPALIER, Embedded, embedded

SPEC: dict[str, Any] = json.loads((ROOT / "examples/specs/release.json").read_text())
DOCUMENT = (ROOT / "docs/release-pipeline.md").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("release") / "home", ESPALIER_WEBHOOK_ALLOW="127.0.0.0/8") as running:
        yield running


def release(service: Embedded, spec: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{ESPALIER.parent}:{service.environment['PATH']}"
    command = [ROOT / "examples/release.sh", spec, folder]
    environment = {**service.environment, "PATH": path, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.xdist_group("release")
class TestReleases:
    def test_what_passes_is_downloaded(self, service: Embedded, tmp_path: Path) -> None:
        done = release(service, ROOT / "examples/specs/release.json", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((tmp_path / "model/report.json").read_text())
        assert [gate["verdict"] for gate in report["gates"]] == ["pass"] * 3
        page = (tmp_path / "report.html").read_text()
        assert 'badge pass">✓ pass' in page
        assert "## Gates: pass" in (tmp_path / "model/README.md").read_text()

    def test_what_fails_is_not(self, service: Embedded, tmp_path: Path) -> None:
        gate = {"metric": "size/weight_bytes", "max": 0.9}
        strict = {**MAGNITUDE, "evaluate": [{"method": "size"}], "gates": [gate]}
        (tmp_path / "spec.json").write_text(json.dumps(strict))
        done = release(service, tmp_path / "spec.json", tmp_path / "out", RELEASE="2.0")
        assert done.returncode == 3, done.stdout + done.stderr
        assert "above the bound" in done.stdout
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["job", "report.html"]
        [job] = service.json("list", "--verdict", "fail")["data"]
        assert job["labels"] == {"release": "2.0"}

    def test_one_that_is_told_publishes_and_verifies(self, service: Embedded, s3_endpoint: str, tmp_path: Path) -> None:
        """examples/pipeline.py as it stands; then one whose gates fail, which publishes nothing."""
        bucket = f"b{uuid.uuid4().hex[:12]}"
        httpx2.put(f"{s3_endpoint}/{bucket}", trust_env=False, timeout=60).raise_for_status()
        (service.home / "s3-key").write_text("test")
        key = f'{{file = "{service.home}/s3-key"}}'
        fields = ['to = "s3"', 'tenants = ["local"]', f'url = "s3://{bucket}"', f'endpoint = "{s3_endpoint}"']
        fields += [f"access_key_id = {key}", f"secret_access_key = {key}"]
        (service.home / "credentials.toml").write_text("\n".join(["[models]", *fields]))
        place = {"to": "s3", "credentials": "models", "path": "bookworm/v1"}
        (tmp_path / "place.json").write_text(json.dumps(place))
        gate = {"metric": "size/weight_bytes", "max": 1.0}
        passing = {**MAGNITUDE, "evaluate": [{"method": "size"}], "gates": [gate]}
        failing = {**passing, "gates": [{**gate, "max": 0.9}]}
        api_key = (service.home / "local-key").read_text().strip()
        environment = {**service.environment, "ESPALIER_URL": service.url, "ESPALIER_API_KEY": api_key}
        for name, spec, code in (("passing", passing, 0), ("failing", failing, 3)):
            (tmp_path / f"{name}.json").write_text(json.dumps(spec))
            command = [sys.executable, ROOT / "examples/pipeline.py", tmp_path / f"{name}.json"]
            command += [tmp_path / "place.json", tmp_path / name]
            done = subprocess.run(
                command, env={**environment, "RELEASE": name}, capture_output=True, text=True, timeout=120
            )
            assert done.returncode == code, done.stdout + done.stderr
            if code == 0:
                assert "told: job.succeeded" in done.stdout  # where it is published before, the pipeline sees that
                assert "published: s3://" in done.stdout
                assert "files are as they were signed" in done.stdout
                again = subprocess.run(
                    command, env={**environment, "RELEASE": name}, capture_output=True, text=True, timeout=120
                )
                assert again.returncode == 0, again.stdout + again.stderr  # it finds the job that has ended
        listed = httpx2.get(f"{s3_endpoint}/{bucket}?list-type=2", trust_env=False, timeout=60).text
        assert listed.count("<Key>bookworm/v1/manifest.j") == 2
        assert service.json("webhooks", "list")["data"] == []
        # The same by hand, on the command line.
        [job] = service.json("list", "--label", "release=passing")["data"]
        place = {**place, "path": "bookworm/v2"}
        assert "published" in service.run("publish", job["id"], json.dumps(place), "--wait").stdout
        shown = service.run("status", job["id"]).stdout
        assert f"s3://{bucket}/bookworm/v1" in shown
        assert f"s3://{bucket}/bookworm/v2" in shown
        [failed] = service.json("list", "--label", "release=failing")["data"]
        assert "withheld by the gates" in service.run("publish", failed["id"], "--wait", exit_code=11).stderr
        assert "gates_not_passed" in service.run("publish", failed["id"], json.dumps(place), exit_code=6).stderr


def test_the_workflow_in_the_document_runs_the_script() -> None:
    found = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    [job] = yaml.safe_load(found[1])["jobs"].values()
    assert any("examples/release.sh examples/specs/release.json" in step.get("run", "") for step in job["steps"])


def test_the_document_shows_the_spec_that_is_run() -> None:
    found = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    assert json.loads(found[1]) == SPEC["gates"]
