"""The shipped model pruned on the windows that the authors' code was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from tests.helpers.small_models import load
from workers.engine.checks.tries import Tries
from workers.engine.events import Silent
from workers.engine.model.calibration import Calibration
from workers.engine.removals.assemble import assemble
from workers.engine.removals.unit_scores import score_units
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.stages.allocate import allocate
from workers.engine.stages.prune import prune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run

HERE = Path(__file__).parents[1] / "golden"
EXAMPLES = HERE.parents[1] / "examples"


def perplexity(folder: Path, windows_NT: Tensor) -> float:
    """exp of the mean cross-entropy of all predictions, in plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True).eval()
    total = 0.0
    with torch.inference_mode():
        for ids_BT in windows_NT.split(2):
            logits_BTV = model(ids_BT, use_cache=False).logits[:, :-1]
            total += cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten(), reduction="sum").item()
    return float(np.exp(total / windows_NT[:, 1:].numel()))


def compressed(folder: Path, windows_NT: Tensor, parts: dict[str, Any], model_id: str = "bookworm-7m") -> Checkpoint:
    """Prune a shipped model on the given windows, through the stages, into `folder/model`."""
    spec = CompressionSpec.model_validate(
        {"model": {"id": model_id}, "calibrate": {"dataset": "calibration.txt"}} | parts
    )
    sources = Sources(EXAMPLES / "models", EXAMPLES / "data")
    model, checkpoint = load(spec, sources), Checkpoint(folder / "checkpoint")
    text = Calibration(windows_NT, "golden")
    run = Run.of(checkpoint, Silent())
    units = score_units(spec, model, text, run) if spec.scores_first else None
    allocation = allocate(spec, model, text, sources, units, Tries(spec, run))
    outcome, _ = prune(spec, model, text, units, allocation, run)
    assemble(spec, model, outcome, checkpoint, folder / "model")
    return checkpoint
