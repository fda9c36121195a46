"""A kind of unit is one file in `removals/` and one pruner: whatever else there is asks it, and never which it is."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from workers.engine.registry import discover, methods
from workers.engine.sources.resolve import Sources

ROOT = Path(__file__).parents[3]

REMOVAL = '''
"""Channel pairs: two neighbouring channels of an MLP go together. Import-light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from workers.engine.architectures.coupled import families
from workers.engine.contracts.removes import Removes
from workers.engine.registry import method_of, pruner
from workers.engine.removals.base import Mask, Removal
from workers.engine.removals.outcome import Outcome

CHANNEL_PAIRS = Removes(
    "channel_pairs", units=("channel pair",), plurals=("channel pairs",), sums_weights=True,
)


def pair_pruner(params, *, paper):
    return pruner(params, removes=CHANNEL_PAIRS, paper=paper, scores="optional")


@dataclass(frozen=True)
class NarrowMLPs(Outcome):
    families: tuple
    kept: int
    cut = True

    def narrow(self, shapes):
        for family in self.families:
            for member in family.members:
                shapes[member.tensor][member.axis] = 2 * self.kept

    def entries(self, config):
        return {"intermediate_size": 2 * self.kept}


class ChannelPairs(Removal):
    removes = CHANNEL_PAIRS

    def families(self, spec, architecture, config, tensors):
        channels = [family for family in families(architecture, config, tensors) if family.kind == "channel"]
        return tuple(
            replace(f, kind="channel pair", units=f.units // 2, unit_parameters=2 * f.unit_parameters) for f in channels
        )

    def outcome(self, spec, source, architecture, sparsity):
        found = self.families(spec, architecture, source.config, source.tensors)
        return NarrowMLPs(architecture.layout, range(architecture.blocks), found, len(self._kept(spec, None, found[0])))

    def sparsity(self, spec, architecture, units):
        return {layer.name: 0.5 * layer.stream.startswith("mlp") for layer in architecture.layers}

    def edit(self, spec, model, units, sparsity, clock):
        from workers.engine.removals.cut import CutUnits

        outcome = self.outcome(spec, model.source, model.architecture, sparsity)
        kept = {(f.block, f.kind): self._kept(spec, units, f) for f in outcome.families}
        return CutUnits(outcome, outcome.families, spec, kept, lambda task, kept_I, _: task.weight_OI.float() * kept_I)

    def mask(self, spec, model, units, outcome):
        return Mask({
            family.reader.tensor: [2 * pair + second for pair in self._kept(spec, units, family) for second in (0, 1)]
            for family in outcome.families
        })

    def went(self, report, share):
        return f"every second pair of channels went, {share} of the weights"

    def _kept(self, spec, units, family):
        scores = units.of(family) if units is not None else None
        return method_of("prune", spec.prune).function(scores, family.units)


REMOVAL = ChannelPairs()
'''
PRUNER = '''
"""Second pairs: the worse half of the pairs of MLP channels goes, or every second one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from workers.engine.contracts.params import PruneMethodParams
from workers.engine.removals.channel_pairs import pair_pruner


class SecondPairsParams(PruneMethodParams):
    """Half of the pairs."""

    method: Literal["second_pairs"] = Field("second_pairs", description="Cut half of the channel pairs.")

    @property
    def target(self):
        return None


@pair_pruner(SecondPairsParams, paper="arXiv:0000.00000")
def prune(scores, pairs):
    """The pairs that stay, ascending."""
    if scores is None:
        return list(range(0, pairs, 2))
    return sorted(sorted(range(pairs), key=lambda pair: scores[pair])[pairs // 2:])
'''
SCRIPT = """
import json
import sys
from pathlib import Path

from app.capabilities.schemas import capabilities
from app.cli import cli
from app.main import create_app
from app.settings import Settings
from pydantic import ValidationError
from typer.testing import CliRunner
from workers.engine.errors import EngineError
from workers.engine.events import Silent
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

folder = Path(sys.argv[1])
sources = Sources(folder / "models", folder / "data")


def spec(**parts):
    return CompressionSpec.model_validate({"model": {"id": "tiny"}, "prune": {"method": "second_pairs"}} | parts)


def refused(**parts):
    try:
        spec(**parts)
    except ValidationError as error:
        return error.errors()[0]["type"]


found = {}
stages = {stage.stage: {m.name: m for m in stage.methods} for stage in capabilities().stages}
found["capabilities"] = (stages["prune"]["second_pairs"].units, stages["score"]["magnitude"].units)
schemas = create_app(Settings(home=folder / "home")).openapi()["components"]["schemas"]
found["openapi"] = (
    schemas["SecondPairsParams"]["properties"]["method"]["const"],
    "second_pairs" in schemas["CompressionSpec"]["properties"]["prune"]["anyOf"][0]["discriminator"]["mapping"],
)
listed = [CliRunner().invoke(cli, words).stdout for words in (["methods"], ["methods", "second_pairs"])]
found["cli"] = ("second_pairs" in listed[0], "units: channel pair" in listed[1])
found["refused"] = [
    refused(score={"method": "taylor"}), refused(refine={"method": "dsnot"}), refused(allocate={"method": "owl"})
]
planned = plan(spec(), sources)
found["plan"] = (planned.parameters, planned.parameters_after, planned.zeros_after, planned.runtimes[0].note)
found["torch before work"] = "torch" in sys.modules

from workers.engine.pipeline import compress

for name, parts in {"fixed": {}, "scored": {"score": {"method": "magnitude"}}}.items():
    report = compress(spec(**parts), folder / name, sources, Silent(), folder / name / "checkpoint")
    model = folder / name / "model"
    found[name] = {
        "parameters": (report.parameters, report.parameters_after),
        "difference": max(check.difference for check in report.checks),
        "mlp": {(layer.shape, round(layer.sparsity, 6)) for layer in report.layers if ".mlp.up" in layer.name}.pop(),
        "config": json.loads((model / "config.json").read_text())["intermediate_size"],
        "page": [said in (model / "report.html").read_text() for said in ("every second pair of", "second_pairs")],
        "card": "Second pairs: the worse half" in (model / "README.md").read_text(),
    }
print(json.dumps(found))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the source with a kind of unit and its pruner dropped in, and nothing else edited."""
    folder = tmp_path / "source"
    for package in ("app", "workers"):
        shutil.copytree(ROOT / package, folder / package)  # with what is compiled
    (folder / "workers/engine/removals/channel_pairs.py").write_text(REMOVAL)
    (folder / "workers/engine/methods/prune/second_pairs.py").write_text(PRUNER)
    return folder


def test_reaches_plan_job_page_command_line_and_schema_with_nothing_else_edited(
    tree: Path, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path],
        cwd=tree,
        env={"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # Of 3 blocks with 48 channels of 3 * 32 weights each, half go.
    dense, left = found["plan"][:2]
    assert dense - left == 3 * 24 * 96
    assert found.pop("plan") == [dense, left, 0, "an ordinary checkpoint whose config says narrower layers"]
    results = {name: found.pop(name) for name in ("fixed", "scored")}
    assert found == {
        "torch before work": False,
        "capabilities": [["channel pair"], ["weight", "channel pair", "expert_channel", "head", "channel", "hidden"]],
        "openapi": ["second_pairs", True],
        "cli": [True, True],
        "refused": ["score_of_other_units", "nothing_to_refine", "nothing_to_allocate"],
    }
    for result in results.values():
        assert result.pop("difference") < 1e-4
        assert result == {
            "parameters": [dense, left],
            "mlp": [[24, 32], 0.5],
            "config": 24,
            "page": [True, True],
            "card": True,
        }
    before = load_file(tiny / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    after = load_file(tmp_path / "fixed/model/model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert after.equal(before.reshape(12, 2, 2, 32)[:, 0].reshape(24, 32))


UNITS = {unit for method in methods("prune") for unit in method.units}
METHODS = {method.name for method in discover().values()}


def asks_which_kind(node: ast.AST) -> bool:
    """`isinstance(…, …PruneParams)`, a comparison of `removes` or of what it holds, or of units with a unit's name."""
    match node:
        case ast.Call(func=ast.Name("isinstance"), args=[_, kind]):
            return any(name.endswith("PruneParams") for name in names(kind))
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            compared = {name for side in sides for name in names(side)}
            if any(isinstance(side, ast.Constant) and side.value is None for side in sides):
                return False  # whether it is a pruner
            return "removes" in compared or bool(
                compared & {"unit", "units", "kind"} and UNITS & {text for side in sides for text in texts(side)}
            )
    return False


def asks_for_a_method(node: ast.AST) -> bool:
    """A comparison of a `method` or `name` with a method's, a look-up by one, or a guess at what parameters it has."""
    match node:
        case ast.Compare(left=left, comparators=others):
            sides = [left, *others]
            compared = {name for side in sides for name in names(side)}
            return bool(compared & {"method", "name"} and METHODS & {text for side in sides for text in texts(side)})
        case ast.Subscript(value=ast.Call(func=ast.Name("discover")), slice=key):
            return bool(METHODS & texts(key))
        case ast.Call(func=ast.Name("getattr" | "hasattr"), args=[of, ast.Constant(), *_]):
            return bool(names(of) & {"params", "spec", "ref"})
    return False


def names(node: ast.AST) -> set[str]:
    return {
        n.id if isinstance(n, ast.Name) else n.attr for n in ast.walk(node) if isinstance(n, ast.Name | ast.Attribute)
    }


def texts(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def hits(asks: Callable[[ast.AST], bool], *folders: Path, but: tuple[str, ...]) -> list[str]:
    found = []
    for file in (file for folder in folders for file in sorted(folder.rglob("*.py"))):
        name = str(file.relative_to(ROOT))
        if not name.startswith(but):
            found += [f"{name}: {ast.unparse(node)}" for node in ast.walk(ast.parse(file.read_text())) if asks(node)]
    return found


OWN = ("workers/engine/removals/", "workers/engine/methods/")


def test_nothing_outside_of_removals_asks_which_kind_it_is() -> None:
    assert hits(asks_which_kind, ROOT / "workers", ROOT / "app", but=OWN) == []


def test_no_code_asks_for_a_method_by_name() -> None:
    assert hits(asks_for_a_method, ROOT / "workers", ROOT / "app", but=OWN[1:]) == []


@pytest.mark.parametrize(
    ("asks", "code"),
    [
        (asks_which_kind, "isinstance(spec.prune, UnitPruneParams)"),
        (asks_which_kind, "isinstance(params, LayerPruneParams | HiddenPruneParams)"),
        (asks_which_kind, "spec.removes != 'weight'"),
        (asks_which_kind, "spec.removes.name in ('blocks', 'hidden')"),
        (asks_which_kind, "'head' in method.units"),
        (asks_which_kind, "method.units == ('hidden',)"),
        (asks_for_a_method, "spec.allocate.method == 'uniform'"),
        (asks_for_a_method, "allocator.name != 'uniform'"),
        (asks_for_a_method, "discover()['allocate', 'ranking']"),
        (asks_for_a_method, "getattr(params, 'batch_size', 1)"),
    ],
)
def test_would_be_found(asks: Callable[[ast.AST], bool], code: str) -> None:
    assert asks(ast.parse(code, mode="eval").body)
