"""What the documents say is so: tables generated, snippets run, links lead somewhere, commands exist."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from fastapi.routing import APIRoute
from typer.main import get_command

from app.cli import cli
from app.errors import AppError
from app.main import create_app
from app.settings import Settings
from tests.cluster import MAGNITUDE, ROOT
from workers.engine.errors import EngineError
from workers.engine.registry import discover
from workers.engine.spec import CompressionSpec

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_generated_tables_are_up_to_date() -> None:
    render = runpy.run_path(str(ROOT / "docs/render.py"))["rendered"]
    assert render(README) == README, "run `python docs/render.py`"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text()):
        assert (document.parent / link).exists(), link


def test_the_tree_in_the_readme_exists() -> None:
    tree = re.search(r"## The tree\n\n```\n(.*?)```", README, re.DOTALL)
    assert tree
    folders: list[str] = []
    for line in tree[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in [part for part in line.split("  ")[depth].split() if part != "…"]:
            folders[depth:] = [name]
            assert (ROOT / "/".join(folders)).exists(), line


@pytest.mark.parametrize("path", sorted((ROOT / "examples/specs").glob("*.json")), ids=lambda path: path.name)
def test_the_example_specs_are_valid(path: Path) -> None:
    CompressionSpec.model_validate_json(path.read_bytes())


def test_the_spec_in_the_readme_is_valid() -> None:
    spec = re.search(r"## A spec\n.*?```json\n(.*?)```", README, re.DOTALL)
    assert spec
    CompressionSpec.model_validate_json(spec[1])


def test_the_method_in_the_readme_works_as_it_stands(tmp_path: Path) -> None:
    """Dropped into a copy of the package, the engine accepts it in a spec and prunes a model by it."""
    found = re.search(r"<!-- method: (\S+),.*?```python\n(.*?)```", README, re.DOTALL)
    assert found
    shutil.copytree(ROOT / "workers", tmp_path / "workers", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / found[1]).write_text(found[2])
    work = tmp_path / "work"
    work.mkdir()
    (work / "spec.json").write_text(json.dumps({**MAGNITUDE, "score": {"method": Path(found[1]).stem}}))
    command = [sys.executable, "-m", "workers.runner", str(work), "--checkpoint", str(work / "checkpoint")]
    command += ["--models", str(ROOT / "examples/models"), "--data", str(ROOT / "examples/data"), "--threads", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((work / "model/report.json").read_text())
    assert report["spec"]["score"] == {"method": Path(found[1]).stem}
    assert report["sparsity"] == pytest.approx(0.5, abs=1e-3)


def subclasses(kind: type) -> Iterator[type]:
    for sub in kind.__subclasses__():
        yield sub
        yield from subclasses(sub)


def test_the_api_document_has_every_path_and_every_code(tmp_path: Path) -> None:
    document = (ROOT / "docs/api.md").read_text()
    for route in create_app(Settings(home=tmp_path)).routes:
        if isinstance(route, APIRoute):
            path = route.path.replace(":path", "")
            assert f"`{path}`" in document, path
            assert path.startswith("/v1/") is False or f"| {min(route.methods - {'HEAD'})} | `{path}` |" in document
    discover()  # methods bring errors of their own
    codes = {
        error.code for tree in (AppError, EngineError) for error in subclasses(tree) if error.__module__[:5] != "tests"
    }
    for source in [*(ROOT / "app").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]:
        codes |= set(re.findall(r'\bcode="([a-z_]+)"', source.read_text()))
    codes -= {"unknown_scope"}  # of the command line: `keys create`
    assert sorted(code for code in codes if f"`{code}`" not in document) == []


# -- packaging ---------------------------------------------------------------------------------------------------------

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def resolves(words: list[str]) -> bool:
    """Whether `espalier …` is a command."""
    command = get_command(cli)
    for word in words:
        if word not in getattr(command, "commands", {}):
            return False
        command = command.commands[word]  # type: ignore[attr-defined]
    return not hasattr(command, "commands")


def test_the_containers_start_commands_that_exist() -> None:
    started = {name: service["command"] for name, service in COMPOSE["services"].items() if "build" in service}
    assert started.keys() == {"migrate", "api", "reconciler", "worker", "worker-gpu"}
    started |= {str(n): json.loads(line) for n, line in enumerate(re.findall(r"^CMD (.*)", DOCKERFILE, re.MULTILINE))}
    for name, (program, *words) in started.items():
        assert program == "espalier", name
        assert resolves(words), name
    assert not resolves(["db", "nonsense"])
    targets = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    assert {s["build"]["target"] for s in COMPOSE["services"].values() if "build" in s} <= targets


def test_the_containers_set_variables_that_exist() -> None:
    known = {f"ESPALIER_{name.upper()}" for name in Settings.model_fields}
    used = set(re.findall(r"\bESPALIER_[A-Z_]+\b", DOCKERFILE + (ROOT / "docker-compose.yml").read_text()))
    for document in DOCUMENTS:
        used |= set(re.findall(r"\bESPALIER_[A-Z_]+\b", document.read_text()))
    assert used - {"ESPALIER_URL", "ESPALIER_API_KEY"} <= known


@pytest.mark.parametrize("target", ["demo", "serve", "test", "lint", "bench", "chaos", "setup"])
def test_make_knows_its_targets(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_dependencies_are_constrained() -> None:
    """Everything pyproject.toml pins exactly has the same version in constraints.txt."""
    constraints = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    pinned = re.findall(r'"([\w-]+)(?:\[\w+\])?==([\w.]+)"', (ROOT / "pyproject.toml").read_text())
    assert len(pinned) > 20
    assert [(n, v) for n, v in pinned if versions.get(n.lower()) != v] == []
