"""How often a GPU would be waited for: as often for six batches as for two. Counted on a CPU."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import small_models
from tests.helpers.small_models import load, spec_of, text_of, walk
from tests.helpers.synchronisations import counted
from workers.engine.contracts.evaluation import EvaluationData
from workers.engine.events import Silent
from workers.engine.model.gradients import gradients
from workers.engine.model.loaded import load_model
from workers.engine.model.memory import Room
from workers.engine.sources.resolve import Sources
from workers.engine.stages.evaluate import EvaluatedModel
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run

TEXT = {"dataset": "calibration.txt", "samples": 6, "sequence_length": 32}
BATCHES = {2: 3 * 32, 6: 32}
"""How many -> tokens of each."""
OWN = "transformers: _local_scalar_dense"
"""Once a batch where a text enters a model: transformers asks whether its windows are packed."""
SOLVERS = {"score": None, "calibrate": TEXT}
JOBS: dict[str, dict[str, Any]] = {
    "wanda": {"calibrate": TEXT},
    "wanda, projection": {"calibrate": TEXT | {"refresh": "projection"}},
    "ria, dsnot": {"calibrate": TEXT, "score": {"method": "ria"}, "refine": {"method": "dsnot", "cycles": 1}},
    "sparsegpt": SOLVERS | {"prune": {"method": "sparsegpt", "sparsity": 0.5}},
    # Of one iteration each: how many there are is decided by rounding, and that by the batches.
    "mrp": SOLVERS | {"prune": {"method": "mrp", "sparsity": 0.5, "iterations": 1}},
    "fista": SOLVERS | {"prune": {"method": "fista", "sparsity": 0.5, "iterations": 1}},
    "owl": {"calibrate": TEXT, "allocate": {"method": "owl"}},
    "taylor": {
        "calibrate": TEXT,
        "score": {"method": "taylor"},
        "prune": {"method": "structured", "sparsity": 0.35, "compensate": False},
    },
    "block_influence": {
        "calibrate": TEXT, "score": {"method": "block_influence"}, "prune": {"method": "depth", "layers": 1},
    },
    "layer_perplexity": {
        "calibrate": TEXT, "score": {"method": "layer_perplexity"}, "prune": {"method": "depth", "layers": 1},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", JOBS)
def test_a_job_waits_as_often_for_six_batches_as_for_two(
    name: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.methods.prune.fista._ROUNDS", 1)
    monkeypatch.setattr("workers.engine.methods.prune.fista._REFIT_ITERATIONS", 1)
    found: dict[int, Counter[str]] = {}
    for batches, tokens in BATCHES.items():
        monkeypatch.setattr(small_models, "load", lambda *of, t=tokens: replace(load(*of), batch_tokens=t))
        with counted() as found[batches]:
            walk(spec_of(**JOBS[name]), sources, tmp_path / str(batches), room=Room(host=2**30))
    entered = found[6].pop(OWN) - found[2].pop(OWN)
    assert found[6] == found[2]
    assert entered == 4 * (2 if name == "owl" else 1)  # for the allocation, and to be pruned


def test_gradients_are_looked_at_once_a_block(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    found = {}
    for batches, tokens in BATCHES.items():
        model = replace(load(spec_of(calibrate=TEXT), sources), batch_tokens=tokens, room=Room(host=2**30))
        text, run = text_of(spec_of(calibrate=TEXT), model, sources), Run.of(Checkpoint(tmp_path), Silent())
        with counted() as found[batches]:
            blocks = list(gradients(model, text, run, splits=2, squared=False))
        assert found[batches].pop(OWN) == batches
    assert found[6] == found[2]
    assert found[6]["_local_scalar_dense"] == len(blocks) == 3


def test_perplexity_is_read_once(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    model = load(spec_of(calibrate=TEXT), sources)
    whole = load_model(tiny, model.device, torch.float32)
    context = EvaluatedModel(model, whole, 0, sources, Silent(), EvaluationData(), Checkpoint(tmp_path), "/evaluate/0")
    windows_NT = text_of(spec_of(calibrate=TEXT), model, sources).windows_NT
    found = {}
    for batches in BATCHES:
        with counted() as found[batches], torch.no_grad():
            context.window_nll(windows_NT, 6 // batches)
        assert found[batches].pop(OWN) == batches
    assert found[6] == found[2] == {"to": 1, "cpu": 1}
