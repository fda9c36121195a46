"""`methods new`: a package with a method of one's own, its tests and its page, to begin from."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import typer

from app.cli import output
from app.cli.exits import Usage
from app.cli.options import AsJson
from workers.engine.method_packages import VARIABLE
from workers.engine.registry import methods

NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
"""Of a module and, with dashes, of a package."""
PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "espalier-$dashed"
version = "0.1.0"
description = "The $stage method `$name` for espalier."
requires-python = ">=3.11"
dependencies = ["espalier-llm[worker]"]

[project.entry-points."espalier.methods"]
"$stage.$name" = "espalier_$name.$name"

[tool.setuptools]
packages = ["espalier_$name"]
"""

PAGE = """\
# $title

The `$stage` method `$name` for espalier: what it computes, from which paper, and what it was measured on.

    pip install --editable .
    pytest                                    # the laws of its stage, and a case by hand
    export $variable=espalier-$dashed
    espalier methods $name                    # its parameters
    espalier compress spec.json --out pruned

API and workers of a service both need the package and that variable.
"""

SPEC = """\
{
  "model": {"id": "HuggingFaceTB/SmolLM2-135M"},
  $stages,
  "prune": {"method": "mask", "sparsity": 0.5}
}
"""

SCORE = '''\
"""$title: importance is the magnitude of a weight, to a power. O = outputs, I = inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.registry import scorer

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.contracts.facts import LinearStats


class $class_name(MethodParams):
    """Importance is the magnitude of a weight, to a power."""

    method: Literal["$name"] = Field("$name", description="One sentence for users.")
    power: float = Field(1.0, gt=0, le=8, description="Of the magnitude.")


# Calibration text is read for `needs=Stat.INPUT_SQ_MEAN` and the like; torch is imported inside functions.
@scorer($class_name, group="row", paper="https://example.org/the-paper")
def score(weight_OI: Tensor, stats: LinearStats, params: $class_name) -> Tensor:
    """Importance [O, I] >= 0, float32, comparable within a row."""
    return weight_OI.float().abs() ** params.power
'''

SCORE_TEST = '''\
"""$title keeps the laws of scores, and is right by hand."""

import pytest
import torch

from espalier_$name.$name import $class_name, score
from workers.engine.contracts.facts import LinearStats
from workers.engine.laws.score import ScoreLaws
from workers.engine.registry import Method, method_in


class TestLaws(ScoreLaws):
    @pytest.fixture
    def method(self) -> Method:
        return method_in("espalier_$name.$name")


def test_right_by_hand() -> None:
    found_OI = score(torch.tensor([[-2.0, 3.0]]), LinearStats(), $class_name(power=2))
    assert found_OI.tolist() == [[4, 9]]
'''

ALLOCATE = '''\
"""$title: sparsity grows from the first block to the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.params import MethodParams
from workers.engine.maths.spreading import by_block, shifted_blocks
from workers.engine.registry import allocator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from workers.engine.contracts.facts import AllocationFacts


class $class_name(MethodParams):
    """Sparsity grows from the first block to the last."""

    method: Literal["$name"] = Field("$name", description="One sentence for users.")
    rise: float = Field(0.1, ge=0, le=0.5, description="Sparsity of the last block less that of the first.")


# `by_place`: blocks that are alike get unequal sparsities. Leave it out where a `measure=` of the blocks decides alone.
@allocator($class_name, paper="https://example.org/the-paper", by_place=True)
def allocate(facts: AllocationFacts, sparsity: float, params: $class_name) -> Mapping[str, float]:
    """Linear in the number of the block; the mean, weighted by parameters, is `sparsity`."""
    blocks = by_block(facts.layers)
    last = max(len(blocks) - 1, 1)
    return shifted_blocks(blocks, [params.rise * number / last for number in range(len(blocks))], sparsity)
'''

ALLOCATE_TEST = '''\
"""$title keeps the laws of allocators, and is right by hand."""

import pytest

from espalier_$name.$name import $class_name, allocate
from workers.engine.architectures.architecture import LinearFacts
from workers.engine.contracts.facts import AllocationFacts
from workers.engine.laws.allocate import AllocateLaws
from workers.engine.registry import Method, method_in


class TestLaws(AllocateLaws):
    @pytest.fixture
    def method(self) -> Method:
        return method_in("espalier_$name.$name")


def test_right_by_hand() -> None:
    layers = [LinearFacts(str(block), block, "mlp_input", (4, 4)) for block in range(3)]
    found = allocate(AllocationFacts(layers, {}), 0.5, $class_name(rise=0.2))
    assert found == pytest.approx({"0": 0.4, "1": 0.5, "2": 0.6})
'''

TEMPLATES = {"score": (SCORE, SCORE_TEST), "allocate": (ALLOCATE, ALLOCATE_TEST)}
STAGES = {
    "score": '"score": {"method": "$name"}',
    "allocate": '"score": {"method": "magnitude"},\n  "allocate": {"method": "$name"}',
}
"""Of the spec that is tried first."""


def new(
    stage: Annotated[Literal["score", "allocate"], typer.Argument(help="What the method does in a spec.")],
    name: Annotated[str, typer.Argument(help="What `method` will say: small letters, digits and underscores.")],
    into: Annotated[Path, typer.Option(help="Folder in which the package's own folder is made.")] = Path(),
    as_json: AsJson = False,
) -> None:
    """Write a package with a method of your own: its file, tests of the stage's laws, its page."""
    if not NAME.fullmatch(name) or keyword.iskeyword(name):
        raise Usage(f"{name!r} is no name of a method: small letters, digits and underscores, such as peak_norm")
    if any(method.name == name for method in methods(stage)):
        raise Usage(f"there is a {stage} method {name} already: choose another name")
    folder = into / f"espalier-{name.replace('_', '-')}"
    if folder.exists():
        raise Usage(f"{folder} is there already: choose another name, or `--into` another folder")
    texts = files(stage, name)
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    if as_json:
        output.print_json({"folder": str(folder), "files": sorted(texts)})
    else:
        said = f"{folder}: begin with espalier_{name}/{name}.py in it; README.md says how it is used"
        output.stdout.print(said)


def files(stage: str, name: str) -> dict[str, str]:
    """Path in the package -> text."""
    values = {
        "stage": stage,
        "name": name,
        "dashed": name.replace("_", "-"),
        "title": name.replace("_", " ").capitalize(),
        "class_name": "".join(part.capitalize() for part in name.split("_")) + "Params",
        "variable": VARIABLE,
    }
    values["stages"] = Template(STAGES[stage]).substitute(values)
    method, test = TEMPLATES[stage]
    texts = {
        "pyproject.toml": PROJECT,
        "README.md": PAGE,
        "spec.json": SPEC,
        f"espalier_{name}/__init__.py": "",
        f"espalier_{name}/{name}.py": method,
        f"tests/test_{name}.py": test,
    }
    return {path: Template(text).substitute(values) for path, text in texts.items()}
