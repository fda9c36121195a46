"""The release pipeline of docs/release-pipeline.md, run as it stands beside a real embedded service."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers.cluster import MAGNITUDE, ROOT
from tests.helpers.embedded import ESPALIER, Embedded, embedded

SPEC: dict[str, Any] = json.loads((ROOT / "examples/specs/release.json").read_text())
DOCUMENT = (ROOT / "docs/release-pipeline.md").read_text()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("release") / "home") as running:
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


def test_the_workflow_in_the_document_runs_the_script() -> None:
    found = re.search(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    [job] = yaml.safe_load(found[1])["jobs"].values()
    assert any("examples/release.sh examples/specs/release.json" in step.get("run", "") for step in job["steps"])


def test_the_document_shows_the_spec_that_is_run() -> None:
    found = re.search(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    assert found
    assert json.loads(found[1]) == SPEC["gates"]
