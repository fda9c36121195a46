"""The documents are true: tables generated, snippets run, links lead somewhere, commands exist."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from safetensors import safe_open
from typer.main import get_command

from app.cli import cli
from app.cli.methods import ShownByDefault
from app.errors import AppError
from app.http import conditional
from app.jobs import history
from app.main import create_app
from app.settings import Settings
from app.sweeps.pareto import ROUNDING
from app.sweeps.schemas import MAX_CHILDREN
from benchmarks import methods as methods_benchmark
from benchmarks import structured as structured_benchmark
from benchmarks import training as training_benchmark
from benchmarks.cells import known as known_cells
from tests.families.rows import known
from tests.helpers.cluster import MAGNITUDE, ROOT
from tests.helpers.families import MORE_FAMILIES, WHOLE_BLOCKS
from workers.engine import DISTRIBUTION
from workers.engine.contracts.params import STAGES
from workers.engine.errors import EngineError
from workers.engine.registry import discover, methods
from workers.engine.spec import CompressionSpec

README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_what_is_generated_is_up_to_date() -> None:
    documents = runpy.run_path(str(ROOT / "docs/render.py"))["documents"]()
    assert {path.name for path in documents} == {"README.md", "parameters.md", "families.md", "extending.md"}
    for path, text in documents.items():
        assert path.read_text() == text, "run `make docs`"


def test_the_reference_has_every_method_and_every_field() -> None:
    text = (ROOT / "docs/parameters.md").read_text()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    for (stage, name), method in discover().items():
        (section,) = re.findall(rf"^### {name}\n(.*?)(?=^### |\Z)", sections[stage], re.MULTILINE | re.DOTALL)
        for field in set(method.params.model_fields) - {"method"}:
            assert f"| `{field}` |" in section, (stage, name, field)
    for field in set(CompressionSpec.model_fields) - set(STAGES):
        assert f"| `{field}` |" in text, field
    assert "| `sparsity` | number or null | `null` | ≥ 0, < 1 |" in sections["prune"]
    assert "| `distill.temperature` | number | `1.0` | ≥ 0.01, ≤ 100 |" in sections["tune"]


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
    paths = create_app(Settings(home=tmp_path)).openapi()["paths"]
    assert len(paths) > 30
    for path, operations in paths.items():
        for method in operations.keys() - {"head"}:
            assert re.search(rf"^\| {method.upper()} \| `{re.escape(path)}[`?]", document, re.MULTILINE), (method, path)
    discover()  # methods bring errors of their own
    codes = {
        error.code for tree in (AppError, EngineError) for error in subclasses(tree) if error.__module__[:5] != "tests"
    }
    for source in [*(ROOT / "app").rglob("*.py"), *(ROOT / "workers").rglob("*.py")]:
        codes |= set(re.findall(r'\bcode="([a-z_]+)"', source.read_text()))
    codes -= {"unknown_scope"}  # of the command line: `keys create`
    assert sorted(code for code in codes if f"`{code}`" not in document) == []


# -- claims that can be checked ----------------------------------------------------------------------------------------

COMMAND = re.compile(r"(?:^|\.venv/bin/|`|\| )espalier ([a-z][^`\n|]*)", re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_in_the_documents_exist_with_their_options(document: Path) -> None:
    text = document.read_text()
    code = (
        "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)) + "\n" + "\n".join(re.findall(r"`[^`\n]+`", text))
    )
    for found in COMMAND.findall(code):
        words = found.split("#")[0].split()
        command: Any = get_command(cli)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        if isinstance(command, ShownByDefault):
            command = command.commands["show"]
        assert not hasattr(command, "commands"), found
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, found


def test_the_parts_of_specs_in_the_documents_are_valid() -> None:
    """Each `"stage": {…}` in running text, put into a spec that has what it needs."""
    text = {"dataset": "heldout.txt"}
    checked = 0
    for document in DOCUMENTS:
        for part in re.findall(
            r"`(\"(?:score|allocate|prune|refine|tune|compute|gates)\":[^`]*)`", document.read_text()
        ):
            fields = json.loads("{" + part.replace("…", "heldout.txt") + "}")
            base = {"model": {"id": "m"}, "calibrate": text, "evaluate": [{"method": "perplexity", **text}]}
            base["prune"] = {"method": "mask", "sparsity": 0.5}
            scores = [None, *({"method": name} for name in ("wanda", "taylor", "block_influence"))]
            errors = []
            for score in scores:
                try:
                    CompressionSpec.model_validate({**base, "score": score, **fields})
                    break
                except ValidationError as error:
                    errors.append(str(error))
            assert len(errors) < len(scores), (part, errors)
            checked += 1
    assert checked >= 8


def test_the_families_that_are_tested_are_in_the_table() -> None:
    rows = known()
    for family in [*MORE_FAMILIES, *WHOLE_BLOCKS]:
        assert rows[family]["jobs"]["wanda"] == {"verdict": "verified"}, family


def test_the_readme_and_the_model_agree_on_its_size() -> None:
    with safe_open(ROOT / "examples/models/bookworm-7m/model.safetensors", "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    assert f"{parameters / 1e6:.2f} M parameters" in README


def test_the_readme_says_which_evaluations_load_whole_models() -> None:
    whole = {method.name.replace("_", " ") for method in methods("evaluate") if method.whole_model}
    (claim,) = re.findall(r"MACs, but (.*?) load whole models", README)
    assert {name.removeprefix("the ") for name in re.split(r", | and ", claim)} == whole


def test_the_readme_has_the_ratios_of_the_benchmarks() -> None:
    """Time and memory beside llm-compressor, from the table of jobs as a worker starts them."""
    text = (ROOT / "docs/benchmarks.md").read_text()

    def ratios(row: str) -> list[str]:
        lines = text[text.index("(`--warm`)") :].splitlines()
        line = next(line for line in lines if line.startswith(f"| {row}"))
        return re.findall(r"\((0\.\d+)\)", line)

    small_sparsegpt, small_wanda, large_sparsegpt, large_wanda = ratios("claim to result, s")
    plain = " ".join(README.split())
    said = (
        f"took {small_sparsegpt} and {large_sparsegpt} of its process's time for SparseGPT (7 M and 350 M parameters)"
    )
    assert f"{said}, {small_wanda} and {large_wanda} for Wanda" in plain
    memory = ratios("peak memory, MB")
    assert f"at {min(memory)} to {max(memory)} of its memory" in plain


def test_the_tables_of_methods_are_those_of_the_measurements() -> None:
    document = (ROOT / "docs/methods.md").read_text()
    methods_rows, structured_rows = (
        [json.loads(line) for line in (ROOT / f"docs/{name}.jsonl").read_text().splitlines()]
        for name in ("methods", "structured")
    )
    tables = [methods_benchmark.tables(methods_rows)]
    if any(structured_benchmark.PPL in row for row in structured_rows):  # measured on the text of today's command
        tables.append(structured_benchmark.table(structured_rows))
    tables.append(training_benchmark.table(known_cells(training_benchmark.RESULTS)))
    for table in tables:
        for line in table.splitlines():
            if line.startswith("|"):  # what stands above is of the machine, and of the next measurements
                assert line in document, line


def test_the_perplexities_said_of_the_tables_are_in_them() -> None:
    document = (ROOT / "docs/methods.md").read_text()
    rows = [json.loads(line) for line in (ROOT / "docs/methods.jsonl").read_text().splitlines()]
    measured = {f"{row['perplexity']:.2f}" for row in rows}
    said = document[document.index("## Every pruner with every allocator") : document.index("<!-- table: make methods")]
    numbers = set(re.findall(r"\b\d\d\.\d\d\b", said))
    assert len(numbers) > 8
    assert numbers <= measured


def test_sizes_to_fit_into_are_for_these_kinds_alone() -> None:
    """As README.md and docs/methods.md say."""
    budgeted = {method.name for method in methods("prune") if "at_most" in method.params.model_fields}
    assert budgeted == {"structured", "hidden", "depth", "expert_channels", "experts"}


def test_the_default_rates_in_the_documents_are_the_defaults() -> None:
    document = (ROOT / "docs/methods.md").read_text()
    table = document[document.index("| method | trains | default rate |") :].split("\n\n")[0]
    rates = {name: float(rate) for name, rate in re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", table, re.MULTILINE)}
    assert rates == {m.name: m.params.model_fields["learning_rate"].default for m in methods("tune")}


def test_the_numbers_of_the_api_document_are_the_constants() -> None:
    document = " ".join((ROOT / "docs/api.md").read_text().split())
    assert f"A comment every {history.PING_EVERY_S} s" in document
    assert history.LONGEST_STREAM_S == 600  # "older than ten minutes"
    assert "older than ten minutes is closed" in document
    assert f"`Prefer: wait=N`, up to {conditional.LONGEST_WAIT_S} s" in document
    assert f"A sweep is up to {MAX_CHILDREN} jobs" in document
    assert f"({100 * ROUNDING:g} %, of a fraction {ROUNDING:g})" in document


def test_no_hint_installs_somebody_elses_package() -> None:
    """`espalier` on PyPI is about phylogenetic trees."""
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] == DISTRIBUTION
    kinds = {".py", ".md", ".html", ".toml", ".yml", ".sh", ""}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    for path in [ROOT / name for name in listed if name]:
        if path.suffix in kinds and path.is_file():
            assert not re.search(r"pip install[^\n]*[\s'\"]espalier(?!-)\b", path.read_text()), path


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


def test_a_worker_is_not_process_1_of_its_container() -> None:
    for name in ("worker", "worker-gpu"):
        assert COMPOSE["services"][name]["init"] is True


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


def test_the_demo_installs_no_tools_of_development() -> None:
    def recipe(target: str) -> str:
        command = ["make", "--dry-run", "--always-make", target]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert "'.[worker]'" in recipe("demo")
    assert "'.[dev]'" not in recipe("demo")
    assert "'.[dev]'" in recipe("test")
    assert "--quiet" not in recipe("demo")  # minutes without a word
    assert "docs/render.py --check" in recipe("lint")


def test_the_dependencies_are_constrained() -> None:
    """Everything pyproject.toml pins exactly has the same version in constraints.txt."""
    constraints = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    versions = {name.lower().replace("_", "-"): version for name, version in constraints.items()}
    pinned = re.findall(r'"([\w-]+)(?:\[\w+\])?==([\w.]+)"', (ROOT / "pyproject.toml").read_text())
    assert len(pinned) > 20
    assert [(n, v) for n, v in pinned if versions.get(n.lower()) != v] == []
