"""Methods of other packages: written by `methods new`, installed, refused until the operator allows the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import ROOT
from tests.helpers.command import espalier
from workers.engine.method_packages import VARIABLE

pytestmark = pytest.mark.xdist_group("method_packages")

PACKAGES = {"slope": "allocate", "peak_norm": "score"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    for name, stage in PACKAGES.items():
        made = run("methods", "new", stage, name, "--into", folder)
        assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def installed(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of site packages with both, as pip installs them."""
    site = tmp_path_factory.mktemp("site")
    command = ["-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", site]
    subprocess.run([sys.executable, *command, *sorted(written.iterdir())], check=True)
    return site


def environment(site: Path | None = None, allowed: str = "") -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{site or ''}", VARIABLE: allowed, "COLUMNS": "200"}


def run(*arguments: object, site: Path | None = None, allowed: str = "") -> subprocess.CompletedProcess[str]:
    if site is None:
        return espalier(*arguments, env=environment(), cwd=ROOT)
    # Packages are found when the command line is imported.
    command = [sys.executable, "-c", "from app.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment(site, allowed), capture_output=True, text=True)


def compress(folder: Path, site: Path, allowed: str) -> subprocess.CompletedProcess[str]:
    """A job with both methods."""
    spec = {
        "model": {"id": "bookworm-7m"},
        "score": {"method": "peak_norm", "power": 2},
        "allocate": {"method": "slope", "rise": 0.2},
        "prune": {"method": "mask", "sparsity": 0.5},
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    models, out = ROOT / "examples/models", folder / "out"
    return run("compress", folder / "spec.json", "--models", models, "--out", out, site=site, allowed=allowed)


@pytest.mark.parametrize("name", PACKAGES)
def test_what_is_written_keeps_the_laws(name: str, written: Path) -> None:
    folder = written / f"espalier-{name.replace('_', '-')}"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "error", folder]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("score", "wanda"), "there is a score method wanda already"),
        (("score", "../up"), "is no name of a method"),
        *((("score", name), "is no name of a method") for name in ("Capital", "class", "import", "_", "a__b", "a_")),
        (("tune", "mine"), "'tune'"),
    ],
)
def test_what_cannot_be_written_is_refused(arguments: tuple[str, str], said: str, tmp_path: Path) -> None:
    done = run("methods", "new", *arguments, "--into", tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_is_not_written_over_another(written: Path) -> None:
    done = run("methods", "new", "allocate", "slope", "--into", written)
    assert (done.returncode, "is there already" in done.stderr) == (2, True)


def test_are_refused_and_named_until_allowed(installed: Path, tmp_path: Path) -> None:
    found = json.loads(run("methods", "--json", site=installed, allowed="espalier-slope").stdout)
    assert found["refused"] == [{"stage": "score", "name": "peak_norm", "origin": "espalier-peak-norm 0.1.0"}]
    origins = {m["name"]: m["origin"] for stage in found["stages"] for m in stage["methods"] if m["origin"]}
    assert origins == {"slope": "espalier-slope 0.1.0"}

    done = compress(tmp_path, installed, "espalier-slope")
    assert done.returncode == 2
    assert "espalier-peak-norm 0.1.0 offers this method" in " ".join(done.stderr.split())
    assert f"{VARIABLE}=espalier-peak-norm" in done.stderr


def test_a_job_names_the_packages_that_made_it(installed: Path, tmp_path: Path) -> None:
    done = compress(tmp_path, installed, "espalier_Slope, espalier.peak-norm")  # written otherwise, the same names
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert {name: report["provenance"]["versions"][name] for name in ("espalier-slope", "espalier-peak-norm")} == {
        "espalier-slope": "0.1.0",
        "espalier-peak-norm": "0.1.0",
    }
    of_blocks = [layer["sparsity"] for layer in report["layers"] if layer["name"].endswith("up_proj")]
    assert of_blocks == sorted(of_blocks)
    assert of_blocks[-1] - of_blocks[0] == pytest.approx(0.2, abs=0.01)


BY_HAND = "from workers.engine.registry import {stage}\nfrom workers.engine.contracts.params import MethodParams\n"


@pytest.mark.parametrize(
    ("entry", "module", "said"),
    [
        ("score.mine = broken", "import torch\n" + "x = 1 / 0", "cannot be imported: ZeroDivisionError"),
        ("score.mine = broken", "import torch\n", "imports torch, which the API does without"),
        ("score.mine = broken", "", "registers no method"),
        ("score.wanda = broken", "wanda", "espalier has a score method 'wanda' already"),
        ("allocate.mine = broken", "mine", "leads to broken, which registers score.mine"),
        ("mine = broken", "mine", "leads to broken, which registers score.mine"),
    ],
    ids=["fails", "heavy", "empty", "taken", "other stage", "no stage"],
)
def test_a_package_that_cannot_be_used_is_named_at_start(entry: str, module: str, said: str, tmp_path: Path) -> None:
    if module.isidentifier():
        from app.cli.method_package import files

        module = files("score", module)[f"espalier_{module}/{module}.py"]
    (tmp_path / "broken.py").write_text(module)
    described = tmp_path / "broken-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text(f"[espalier.methods]\n{entry}\n")
    assert said in at_start(tmp_path, "broken")
    assert at_start(tmp_path, "") == "", "code of a package that is not allowed is not run"


def test_an_allowed_package_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert f"{VARIABLE} names nobodys: not installed here" in at_start(tmp_path, "nobodys")


def at_start(site: Path, allowed: str) -> str:
    """Of an import of the spec: what went wrong."""
    command = [sys.executable, "-c", "import workers.engine.spec"]
    return subprocess.run(command, cwd=ROOT, env=environment(site, allowed), capture_output=True, text=True).stderr
