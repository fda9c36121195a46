"""docs/ci.md and docs/client.md as they stand: in an environment with the base install alone, beside a real service."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helpers import fresh
from tests.helpers.cluster import MAGNITUDE, ROOT
from tests.helpers.embedded import Embedded, embedded

pytestmark = pytest.mark.xdist_group("base install")  # one environment for all


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("pipelines") / "home") as running:
        yield running


def gated(most: float) -> dict[str, Any]:
    gate = {"metric": "size/weight_bytes", "max": most}
    return {**MAGNITUDE, "evaluate": [{"method": "size"}], "gates": [gate]}


CONDITION = re.compile(r"\$\{\{ (success\(\)|!cancelled\(\))(?: && steps\.(\w+)\.outputs\.(\w+))? \}\}")


def perform(
    workflow: dict[str, Any], binaries: Path, wheel: Path, service: Embedded, folder: Path
) -> dict[str, int | None]:
    """Name of each `run:` step -> its exit code; None where it was skipped. The part of GitHub's runner that it needs:
    the environment, outputs of steps, and which steps run after a failure."""
    (job,) = workflow["jobs"].values()
    outputs, codes = dict[str, str](), dict[str, int | None]()
    given = {
        "ESPALIER_URL": service.url,
        "ESPALIER_API_KEY": (service.home / "local-key").read_text().strip(),
        "CLIENT_WHEEL": str(wheel),
    }
    assert job["env"].keys() == given.keys()
    for step in [step for step in steps(workflow) if "run" in step]:
        condition = step.get("if", "${{ success() }}")
        wanted = re.fullmatch(
            r"\$\{\{ (success\(\)|!cancelled\(\))(?: && steps\.(\w+)\.outputs\.(\w+))? \}\}", condition
        )
        assert wanted, condition
        failed = any(codes.values())
        if (failed and wanted[1] == "success()") or (wanted[2] and not outputs.get(f"{wanted[2]}.{wanted[3]}")):
            codes[step["name"]] = None
            continue
        script = re.sub(
            r"\$\{\{ steps\.(\w+)\.outputs\.(\w+) \}\}", lambda found: outputs[f"{found[1]}.{found[2]}"], step["run"]
        )
        assert "${{" not in script
        written = folder / ".github_output"
        written.write_text("")
        done = subprocess.run(
            ["bash", "-e", "-c", script],
            env={**fresh.variables(binaries), **given, "GITHUB_SHA": folder.name, "GITHUB_OUTPUT": str(written)},
            cwd=folder, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        print(step["name"], done.stdout, done.stderr)  # noqa: T201
        codes[step["name"]] = done.returncode
        for line in written.read_text().splitlines():
            name, _, value = line.partition("=")
            outputs[f"{step['id']}.{name}"] = value
    return codes


@pytest.fixture
def workflow() -> dict[str, Any]:
    found = re.search(r"<!-- workflow:.*?-->\n```yaml\n(.*?)```", (ROOT / "docs/ci.md").read_text(), re.DOTALL)
    assert found
    return dict(yaml.safe_load(found[1]))


def test_a_workflow_elsewhere_ships_what_passes_and_stops_what_does_not(
    workflow: dict[str, Any], wheel: Path, service: Embedded, tmp_path: Path
) -> None:
    machine = fresh.base(tmp_path / "machine"), wheel
    for most, gate, downloads in ((1.0, 0, 0), (0.9, 3, None)):
        folder = tmp_path / str(most)
        folder.mkdir()
        (folder / "compress.json").write_text(json.dumps(gated(most)))
        assert perform(workflow, *machine, service, folder) == {
            "Install the client": 0,
            "Submit": 0,
            "Wait, and ask the gates": gate,
            "Report, for whoever has to decide": 0,
            "Download, each file against its sha256": downloads,
        }
        assert "</html>" in (folder / "report.html").read_text()
        assert (folder / "model/model.safetensors").exists() == (downloads == 0)
    made = json.loads((folder / "job.json").read_text())["id"]
    workflow["jobs"]["compress"]["steps"] = [step for step in steps(workflow) if step.get("id") == "submit"]
    assert perform(workflow, *machine, service, folder) == {"Submit": 0}
    assert json.loads((folder / "job.json").read_text())["id"] == made  # run again, it finds the job that it has


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return list(workflow["jobs"]["compress"]["steps"])


def test_the_examples_of_the_client_work_as_printed(installed: Path, service: Embedded, tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)```", (ROOT / "docs/client.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    key = (service.home / "local-key").read_text().strip()
    variables = {**fresh.variables(installed), "ESPALIER_URL": service.url, "ESPALIER_API_KEY": key}
    done = subprocess.run(
        [installed / "python", "-c", "\n".join(blocks)],
        env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    assert re.search(
        r"^pass \{.*'size/zeros': MetricSummary\(dense=0.0, pruned=2949120.0, ratio=None, unit='parameters'\)",
        said,
        re.MULTILINE,
    )
    assert re.search(r"^succeeded None ", said, re.MULTILINE)
    assert re.search(r"^\d+ succeeded ", said, re.MULTILINE)
    assert re.search(r"^job_\w+ succeeded pass$", said, re.MULTILINE)
    assert re.search(r"^prune\.sparsity \[0\.4, 0\.5\]$", said, re.MULTILINE)
    assert "/spec/prune/sparsity Input should be less than 1" in said
    for folder in ("pruned", "pruned-1"):
        assert (tmp_path / folder / "model.safetensors").exists()
