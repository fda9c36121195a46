"""Sizes and zeros that a spec bounds are counted on the result: a result that breaks a bound fails the job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.small_models import size_of, spec_of
from workers.engine.architectures.architecture import LinearFacts
from workers.engine.checks.promises import memory_warnings
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import PromiseBroken
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.removals import assemble as assembling
from workers.engine.removals.base import removal_of
from workers.engine.report import StageReport
from workers.engine.sources.resolve import Sources, resolve_model

STRUCTURED: Any = {"score": {"method": "magnitude"}, "calibrate": None}


@pytest.mark.parametrize("limit", ["parameters", "bytes", "macs"])
def test_a_result_that_is_larger_than_allowed_fails_and_says_by_how_much(
    limit: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the search for the sparsity is mistaken."""
    allowed = size_of(resolve_model(ModelRef(id="tiny"), sources))[limit] - 1
    prune = {"method": "structured", "at_most": {limit: allowed}, "compensate": False}
    monkeypatch.setattr("workers.engine.stages.allocate.fitting_sparsity", lambda *_, **__: (0.0, None))
    said = f"{limit}: at most {allowed:,} were asked for, and the result has {allowed + 1:,}"
    with pytest.raises(PromiseBroken, match=said) as error:
        compress(spec_of(prune=prune, **STRUCTURED), tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    assert error.value.field == f"/prune/at_most/{limit}"


@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_a_result_with_too_few_zeros_fails(
    pattern: str | None, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the assembled file is not what was pruned: one zero is a weight again, or beside its place."""
    merge = assembling.merge

    def broken(parts: Any, file: Path) -> None:
        merge(parts, file)
        tensors = load_file(file)
        weight_OI = tensors["model.layers.1.mlp.up_proj.weight"]
        zero, weight = (int(found.flatten().nonzero()[0]) for found in (weight_OI == 0, weight_OI != 0))
        weight_OI.view(-1)[zero] = 1.0
        if pattern:
            weight_OI.view(-1)[weight + 4 : weight + 8] = 0.0  # as many zeros and more, in another group
        save_file(tensors, file, metadata={"format": "pt"})

    monkeypatch.setattr(assembling, "merge", broken)
    monkeypatch.setattr("workers.engine.pipeline.verify", lambda *_: [])  # which would see it first
    prune = {"method": "mask"} | ({"pattern": pattern} if pattern else {"sparsity": 0.5})
    said = "2 of every 4 weights were to stay, and the result has 3 in one group" if pattern else "weights were to go"
    with pytest.raises(PromiseBroken, match=f"layers.1.mlp.up_proj: .*{said}"):
        compress(spec_of(prune=prune), tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("prune", "weight_OI", "zeros"),
    [
        ({"sparsity": 0.5}, torch.ones(2, 8), 8),
        ({"sparsity": 0.0}, torch.ones(2, 8), 0),
        ({"pattern": "2:4"}, torch.tensor([[0.0, 1, 0, 1, 0, 0, 0, 1]] * 2), 10),
    ],
)
def test_more_zeros_than_asked_for_are_no_breach(prune: dict[str, Any], weight_OI: Tensor, zeros: int) -> None:
    spec = spec_of(prune={"method": "mask"} | prune)
    sparsity = spec.prune.target
    assert sparsity is not None
    removal_of(spec).check_layer(spec, LinearFacts("q", 0, "x", (2, 8)), sparsity, weight_OI, zeros)


def test_a_job_that_took_more_memory_than_its_budget_says_so() -> None:
    stages = [
        StageReport(stage=name, elapsed_s=1, peak_memory_bytes=peak * 2**20)
        for name, peak in (("prune", 300), ("tune", 700), ("evaluate", 800))
    ]
    budget = 600 * 2**20
    assert memory_warnings(budget, stages) == [
        "the job had 800 MiB resident, pages of mapped weight files included, and its budget is 600 MiB: the first "
        "stage above it was `tune`"
    ]
    on_device = [stages[0].model_copy(update={"device_peak_memory_bytes": 700 * 2**20})]
    assert memory_warnings(budget, on_device) == [
        "the job had 700 MiB allocated on the device, and its budget is 600 MiB: the first stage above it was `prune`"
    ]
    assert memory_warnings(budget, stages[:1]) == memory_warnings(None, stages) == []
