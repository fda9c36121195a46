"""Trainings of families whose mixers read a layer's weight and bias past its `forward`, or hold convolutions fused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.families.checkpoints import save_tiny
from tests.helpers.small_models import spec_of
from tests.helpers.training import training
from tests.helpers.tuning import tuning
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources

ZEROS = {"calibrate": None, "prune": {"method": "mask", "sparsity": 0.5}}
MAGNITUDE = ZEROS | {"score": {"method": "magnitude"}}
FEW: dict[str, Any] = {"steps": 2, "holdout": 2}


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        pytest.param("bamba", MAGNITUDE | {"tune": tuning("spp", **FEW)}, id="Mamba, spp"),
        pytest.param(
            "bamba", MAGNITUDE | {"tune": tuning("group", group_size=8, steps=2, holdout=2)}, id="Mamba, group"
        ),
        pytest.param("qwen3_next", MAGNITUDE | {"tune": tuning("full", **FEW)}, id="delta rule, full"),
        pytest.param(
            "qwen3_next", ZEROS | {"score": None, "train": training("gradual", **FEW)}, id="delta rule, gradual"
        ),
    ],
)
def test_hybrids_train(family: str, parts: dict[str, Any], sources: Sources, tmp_path: Path) -> None:
    save_tiny(family, sources.models_dir / family)
    spec = spec_of(**parts, model={"id": family})
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    trained = report.tune or report.train
    assert trained is not None
    assert trained.steps == 2
    assert all(check.difference < 1e-3 for check in report.checks)
