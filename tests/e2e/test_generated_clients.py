"""Clients that generators make, untouched, of what a real service says of itself; examples/dashboard works on both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.helpers.cluster import ROOT
from tests.helpers.embedded import Embedded, embedded

EVERYTHING = """
import importlib, inspect, json, os, pkgutil, sys
from pathlib import Path
from espalier_client import AuthenticatedClient, api
from espalier_client.api.account import me_get
from espalier_client.api.jobs import jobs_create, jobs_list
from espalier_client.models import CompressionSpec, JobSubmit

for path in sys.argv[1:]:
    spec = json.loads(Path(path).read_text())
    assert CompressionSpec.from_dict(spec).to_dict() == spec, path
client = AuthenticatedClient(os.environ["ESPALIER_URL"], token=os.environ["ESPALIER_API_KEY"])
job = jobs_list.sync(client=client).data[0]
assert jobs_create.sync(client=client, body=JobSubmit(spec=job.spec), dry_run=True).spec_digest == job.spec_digest
known = {"job_id": job.id, "model_id": "bookworm-7m", "path": "config.json"}
known["tenant_id"] = me_get.sync(client=client).tenant.id
for module in pkgutil.walk_packages(api.__path__, "espalier_client.api."):
    if module.ispkg:
        continue
    operation = importlib.import_module(module.name)
    parameters = inspect.signature(operation._get_kwargs).parameters
    needed = [name for name, each in parameters.items() if each.default is inspect.Parameter.empty]
    if not set(needed) <= set(known) or operation._get_kwargs(**{n: known[n] for n in needed})["method"] != "get":
        continue
    answer = operation.sync_detailed(**{name: known[name] for name in needed}, client=client)
    print(module.name.rpartition(".")[2], type(answer.parsed).__name__)
"""
"""Every GET that takes no more than ids, a job's spec once more, and the specs of files, with the generated client."""
GENERATORS = ROOT / ".venv/generators"
BIN = GENERATORS / "bin"
pytestmark = [
    pytest.mark.xdist_group("generated"),
    pytest.mark.skipif(not (BIN / "node").exists(), reason="`make setup` installs the generators"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with embedded(tmp_path_factory.mktemp("generated") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def folder(service: Embedded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dashboards, and the document that the service serves."""
    folder = tmp_path_factory.mktemp("dashboard") / "dashboard"
    shutil.copytree(ROOT / "examples/dashboard", folder)
    (folder / "openapi.json").write_bytes(
        httpx2.get(f"{service.url}/openapi.json", trust_env=False, timeout=60).content
    )
    (folder / "node_modules").symlink_to(GENERATORS / "node_modules")
    return folder


def run(folder: Path, *command: object, **variables: str) -> str:
    """Run a command that succeeds: its standard output and error together."""
    path = f"{BIN}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def connection(service: Embedded) -> dict[str, str]:
    return {"ESPALIER_URL": service.url, "ESPALIER_API_KEY": (service.home / "local-key").read_text().strip()}


def use(service: Embedded, folder: Path, *command: object) -> None:
    """Run a dashboard: it submits, follows and shows a job."""
    said = run(folder, *command, **connection(service))
    job = service.json("list")["data"][0]
    assert job["labels"] == {"from": "dashboard"}
    assert job["spec"]["prune"]["sparsity"] == 0.3
    assert job["id"] in said
    assert "bookworm-7m: 30.0 % removed" in said
    assert f"{job['metrics']['perplexity/heldout.txt']['pruned']:.4g}" in said


def test_python(service: Embedded, folder: Path) -> None:
    generate = ("openapi-python-client", "generate", "--meta", "none", "--path", "openapi.json")
    said = run(folder, BIN / generate[0], *generate[1:], "--output-path", "espalier_client")
    assert said.split() == ["Generating", "espalier_client"], f"it warns: {said}"
    unnamed = [path.name for path in (folder / "espalier_client/models").glob("*.py") if "VALUE_0" in path.read_text()]
    assert unnamed == [], "values without a name"
    checked = ["mypy", "--config-file=", "--cache-dir", folder / "mypy", "--python-executable", BIN / "python"]
    checked += ["--disallow-any-generics", "--disallow-untyped-defs", "--warn-unreachable", "dashboard.py"]
    done = subprocess.run([sys.executable, "-m", *map(str, checked)], cwd=folder, capture_output=True, text=True)
    # Its own template for `with` is not typed; what follows from our document is.
    wrong = [line for line in done.stdout.splitlines() if ": error" in line and "espalier_client/client.py" not in line]
    assert wrong == []
    assert "checked 1 source file" in done.stdout
    use(service, folder, BIN / "python", "dashboard.py")
    (folder / "everything.py").write_text(EVERYTHING)
    specs = sorted((ROOT / "examples/specs").glob("*.json"))
    read = dict(
        line.split()
        for line in run(folder, BIN / "python", "everything.py", *specs, **connection(service)).splitlines()
    )
    assert {"JobPage", "JobRead", "Report", "ArtifactList", "Capabilities", "WorkerList"} <= set(read.values())
    assert len(read) >= 20
    assert [name for name, kind in read.items() if kind in ("NoneType", "Problem")] == ["sessions_get"], (
        "it needs a cookie"
    )


def test_typescript(service: Embedded, folder: Path) -> None:
    said = run(folder, BIN / "node", "node_modules/.bin/openapi-typescript", "openapi.json", "-o", "schema.d.ts")
    assert [line[0] for line in said.split("\n") if line] == ["✨", "🚀"], f"it warns: {said}"
    types = (folder / "schema.d.ts").read_text().splitlines()
    unknown = [line.strip() for line in types if "unknown" in line and "[name: string]: unknown" not in line]
    assert unknown == ["JsonValue: string | number | boolean | unknown[] | {", "[key: string]: unknown;"]
    (folder / "refused.ts").write_text(
        'import type { components } from "./schema.d.ts";\n'
        'type Spec = components["schemas"]["CompressionSpec"];\n'
        "// @ts-expect-error\n"
        'export const one: Spec = { model: { id: "a" }, prune: { method: "mask", sparsity: "half" } };\n'
        "// @ts-expect-error\n"
        'export const other: Spec = { model: { id: "a" }, prone: {} };\n'
    )
    both = {"extends": "./tsconfig.json", "files": ["dashboard.ts", "refused.ts"]}
    (folder / "both.json").write_text(json.dumps(both))
    run(folder, BIN / "node", "node_modules/.bin/tsc", "--project", "both.json")
    use(service, folder, BIN / "node", "dashboard.ts")
