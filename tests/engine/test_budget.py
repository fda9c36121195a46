"""Sizes to fit into: met, not overshot, and refused where they cannot be met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from workers.engine.architectures.llama import recognise
from workers.engine.errors import InvalidSpec
from workers.engine.events import Silent
from workers.engine.methods.evaluate.macs import macs
from workers.engine.pipeline import compress
from workers.engine.plan import plan
from workers.engine.sources import ModelSource, Sources, resolve_model
from workers.engine.spec import CompressionSpec, ModelRef

from .conftest import spec_of

CHANNELS = {"parameters": 3 * 32, "bytes": 3 * 32 * 4, "macs": 64 * 3 * 32}
"""What one channel takes: a row of gate_proj and up_proj, a column of down_proj."""
FLOOR = {"parameters": 2 * 4096 * 32, "bytes": 4 * 2 * 4096 * 32, "macs": 64 * 4096 * 32}
"""Embedding and head, which stay. The head alone multiplies."""


def fitted(limits: dict[str, int], **parts: Any) -> CompressionSpec:
    prune = {"method": "structured", "at_most": limits, "compensate": False} | parts.pop("prune", {})
    return spec_of(**{"score": {"method": "magnitude"}, "calibrate": None, "prune": prune} | parts)


def size_of(source: ModelSource) -> dict[str, int]:
    """Counted in a model's files."""
    return {
        "parameters": source.parameters,
        "bytes": sum(facts.bytes for facts in source.tensors.values()),
        "macs": macs(recognise(source.config, source.tensors), 64),
    }


@pytest.mark.parametrize("share", [0.95, 0.5])
@pytest.mark.parametrize("allocate", ["uniform", "ranking"])
@pytest.mark.parametrize("limit", ["parameters", "bytes", "macs"])
def test_the_result_fits_and_no_more_goes_than_that_takes(
    limit: str, allocate: str, share: float, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    dense = size_of(resolve_model(ModelRef(id="tiny"), sources))
    wanted = int(FLOOR[limit] + share * (dense[limit] - FLOOR[limit]))
    spec = fitted({limit: wanted}, allocate={"method": allocate})
    report = compress(spec, tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    found = size_of(resolve_model(ModelRef(id="model"), Sources(tmp_path / "out", sources.data_dir)))
    # A uniform cut gives back a channel of all three blocks at once. So does a ranking, at worst: what its whole
    # channels leave over is rounded block by block.
    assert wanted - 3 * CHANNELS[limit] < found[limit] <= wanted
    assert report.parameters_after == found["parameters"]
    if allocate == "uniform":
        assert plan(spec, sources).parameters_after == found["parameters"]


def test_of_several_limits_the_tightest_decides(tiny: Path, sources: Sources) -> None:
    dense = size_of(resolve_model(ModelRef(id="tiny"), sources))
    loose = dense["bytes"] - 10 * CHANNELS["bytes"]
    tight = dense["macs"] - 60 * CHANNELS["macs"]
    alone, both = fitted({"macs": tight}), fitted({"macs": tight, "bytes": loose})
    assert plan(both, sources).parameters_after == plan(alone, sources).parameters_after
    assert plan(fitted({"bytes": loose}), sources).parameters_after > (plan(alone, sources).parameters_after or 0)  # type: ignore[operator]


def test_a_model_that_fits_already_is_left_alone(tiny: Path, sources: Sources) -> None:
    found = plan(fitted({"parameters": 10**9}), sources)
    assert found.parameters_after == found.parameters
    assert {layer.target_sparsity for layer in found.layers} == {0.0}


def test_what_cannot_be_met_names_the_limit_and_the_least(tiny: Path, sources: Sources) -> None:
    with pytest.raises(InvalidSpec, match="cannot be cut to parameters 1,000: the smallest with this") as refused:
        plan(fitted({"bytes": 10**9, "parameters": 1000}), sources)
    assert refused.value.field == "/prune/at_most/parameters"
    with pytest.raises(InvalidSpec, match="cannot be cut"):  # nothing may go
        plan(fitted({"parameters": 1000}, prune={"protect_first": 3}), sources)


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"at_most": {}}, "at least one of `parameters`, `bytes`, `macs` and"),
        ({"at_most": {"parameters": 0}}, "greater than or equal to 1"),
        ({"at_most": {"parameters": 1}, "sparsity": 0.5}, "either `sparsity`, or `at_most`"),
        ({}, "either `sparsity`, or `at_most`"),
    ],
)
def test_one_target_is_asked_for(prune: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(score={"method": "magnitude"}, prune={"method": "structured", **prune})
