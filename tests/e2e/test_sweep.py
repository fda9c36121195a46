"""A sweep on a real embedded service: one child poisoned, one stopped, the others compared."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.sweeps.expand import children
from app.sweeps.schemas import SweepSubmit
from tests.helpers.cluster import MAGNITUDE, ROOT, eventually
from tests.helpers.embedded import ESPALIER, Embedded, embedded

pytestmark = pytest.mark.xdist_group("sweep")
SPARSITY = "/prune/sparsity"
SHORT = {"dataset": "short.txt", "samples": 4, "sequence_length": 64}
SWEEP: dict[str, Any] = {
    "name": "poisoned",
    "spec": {
        **MAGNITUDE,
        "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 20}],
        "gates": [{"metric": "perplexity/heldout.txt", "max": 1.5}],
    },
    "list": [
        # What the door cannot see and the job finds: a text with too few tokens.
        {SPARSITY: 0.5, "/calibrate": SHORT, "/score/method": "wanda"},
        {SPARSITY: 0.3},
        {SPARSITY: 0.9},
        {SPARSITY: 0.95},
    ],
    "stop": {"ascending": SPARSITY},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    folder = tmp_path_factory.mktemp("sweep")
    data = folder / "data"
    data.mkdir()
    (data / "short.txt").write_text("Far too little to learn anything from. " * 3)
    shutil.copy(ROOT / "examples/data/heldout.txt", data)
    with embedded(folder / "home", ESPALIER_DATA_DIR=str(data)) as running:
        yield running


def test_a_poisoned_child_hides_nothing_and_the_rule_stops_the_rest(service: Embedded, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(SWEEP))
    assert "about" in service.run("sweep", "submit", str(path), "--dry-run").stdout
    sweep_id = service.json("sweep", "submit", str(path))["id"]
    headers = {"Authorization": f"Bearer {(service.home / 'local-key').read_text().strip()}"}
    with httpx2.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False) as http:
        sweep = eventually(
            lambda: s if (s := http.get(f"/v1/sweeps/{sweep_id}").json())["status"] == "completed" else None, 120
        )
    poisoned, mild, harsh, harsher = sweep["children"]
    assert (poisoned["status"], poisoned["error"]["code"]) == ("failed", "dataset_too_short")
    assert (mild["status"], mild["verdict"]) == ("succeeded", "pass")
    assert (harsh["status"], harsh["verdict"]) == ("succeeded", "fail")
    assert (harsher["status"], harsher["stopped_by"]) == ("cancelled", 2)
    # Its only worker had cancelled it before it could have begun it.
    assert service.json("status", harsher["job_id"])["attempt"] == 0

    found = service.json("sweep", "pareto", sweep["id"])
    assert [(found[axis]["metric"], found[axis]["higher_is_better"]) for axis in ("quality", "cost")] == [
        ("perplexity/heldout.txt", False),
        ("sparsity", True),
    ]
    assert [(point["number"], point["on_front"]) for point in found["points"]] == [(1, True), (2, False)]
    assert [left["number"] for left in found["left_out"]] == [0, 3]
    shown = service.run("sweep", "pareto", sweep["id"]).stdout
    assert "not compared: 0: failed" in shown
    assert "no: gates fail" in shown
    service.run("sweep", "pareto", sweep["id"], "--html", str(tmp_path / "page.html"))
    assert (tmp_path / "page.html").read_text().count('<circle class="dot best') == 1
    shown = service.run("sweep", "show", sweep["id"]).stdout
    assert "dataset_too_short" in shown
    assert "stopped by 2" in shown
    assert service.json("sweep", "cancel", sweep["id"])["children"] == sweep["children"]  # nothing is left to stop
    assert [found["id"] for found in service.json("sweep", "list")["data"]] == [sweep_id]
    assert "1 cancelled, 1 failed, 2 succeeded" in service.run("sweep", "list").stdout
    assert service.json("sweep", "delete", sweep_id) == {"id": sweep_id, "deleted": True}
    assert service.json("sweep", "list")["data"] == []


def test_a_dry_run_says_what_only_the_jobs_will_find(service: Embedded, tmp_path: Path) -> None:
    path = tmp_path / "sweep.json"
    spec = {**MAGNITUDE, "prune": {"method": "structured", "sparsity": 0.3, "compensate": False}}
    path.write_text(json.dumps({"spec": spec, "grid": {"/allocate/method": ["uniform", "ranking"]}}))
    uniform, ranking = service.json("sweep", "submit", str(path), "--dry-run")["children"]
    assert uniform["parameters_after"] < 6_951_168
    assert (ranking["parameters_after"], ranking["bytes_after"]) == (None, None)
    assert "to be found" in service.run("sweep", "submit", str(path), "--dry-run").stdout
    path.write_text(json.dumps(spec | {"allocate": {"method": "ranking"}}))
    assert "→ to be found" in service.run("submit", str(path), "--dry-run").stdout


def test_a_researchers_table(service: Embedded, tmp_path: Path) -> None:
    """examples/paper_table.sh, of fewer cells; and two of its jobs beside one another."""
    spec = {
        **MAGNITUDE,
        "score": {"method": "wanda"},
        "calibrate": {"dataset": "heldout.txt", "samples": 2, "sequence_length": 32},
        "evaluate": [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 4}],
        "gates": [{"metric": "perplexity/heldout.txt", "max": 2.0}],
    }
    grid = {SPARSITY: [0.3, 0.8], "/calibrate/seed": [0, 1]}
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "50 % of_it", "spec": spec, "grid": grid}))
    command = [ROOT / "examples/paper_table.sh", tmp_path / "sweep.json"]
    path = f"{ESPALIER.parent}:{service.environment['PATH']}"
    done = subprocess.run(command, env={**service.environment, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mild, harsh = [line.strip() for line in done.stdout.splitlines() if line.lstrip().startswith("0.")]
    assert re.fullmatch(r"0\.3 & \$\\mathbf\{[0-9.]+ \\pm [0-9.]+\}\$ & 2 & pass \\\\", mild), mild
    assert re.fullmatch(r"0\.8 & \$[0-9.]+ \\pm [0-9.]+\$ & 2 & fail \\\\", harsh), harsh
    assert r"\caption{50 \% of\_it. Mean $\pm$ standard deviation over seeds" in done.stdout

    sweep_id = done.stderr.split()[-1]
    [row, _] = service.json("sweep", "table", sweep_id)["rows"]
    jobs = [child["job_id"] for child in service.json("sweep", "show", sweep_id)["children"]]
    perplexities = [service.json("status", job)["metrics"]["perplexity/heldout.txt"]["pruned"] for job in jobs[:2]]
    assert row["metrics"]["perplexity/heldout.txt"]["mean"] == pytest.approx(sum(perplexities) / 2)
    assert row["metrics"]["perplexity/heldout.txt"]["sd"] == pytest.approx(
        abs(perplexities[0] - perplexities[1]) / 2**0.5
    )
    assert "| 0.3 | **" in service.run("sweep", "table", sweep_id).stdout
    ratios = service.run("sweep", "table", sweep_id, "--format", "csv", "--of", "ratio").stdout.splitlines()
    assert ratios[0].startswith("/prune/sparsity,perplexity/heldout.txt mean,perplexity/heldout.txt sd,")
    assert (
        "choose among perplexity/heldout.txt"
        in service.run("sweep", "table", sweep_id, "--metric", "nothing", exit_code=2).stderr
    )

    shown = service.run("compare", jobs[0], jobs[2]).stdout
    assert re.search(r"prune\.sparsity +0\.3 +0\.8", shown)
    assert "calibrate.seed" not in shown
    assert re.search(r"removed +(29|30)\.\d+% +(79|80)\.\d+%", shown)
    found = service.json("compare", jobs[0], jobs[2])
    assert [field["path"] for field in found["spec"]] == ["prune.sparsity"]
    assert service.json("compare", jobs[0], exit_code=6)["problem"]["errors"][0]["pointer"] == "?job"


def test_the_examples_are_valid() -> None:
    SweepSubmit.model_validate_json((ROOT / "examples/sweep.json").read_bytes())
    found = children(SweepSubmit.model_validate_json((ROOT / "examples/paper.json").read_bytes()))
    assert len({child.spec.model_copy(update={"calibrate": None}).digest() for child in found}) == 18
    assert len(found) == 54
