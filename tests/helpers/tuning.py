"""Small tunings: parameters, a folder with a pruned model of which every run tunes a copy, and a kill."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.helpers.small_models import load, spec_of
from workers.engine.checks.trace import TOLERANCE
from workers.engine.checks.verify import verify_tuned
from workers.engine.events import Silent
from workers.engine.model.loaded import LoadedModel
from workers.engine.report import TuneReport
from workers.engine.sources.resolve import Sources
from workers.engine.stages.tune import tune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run
from workers.engine.training.portions import PORTION
from workers.engine.training.text import TuningText, training_text

FEW = {
    "dataset": "calibration.txt", "steps": 6, "batch": 3, "sequence_length": 32, "holdout": 4, "evaluate_every": 2,
    "distill": None,
}  # fmt: skip
FITTING = {"group": {"group_size": 16}}
"""Parameters with which a method fits `tiny`, whose MLP is 48 wide."""


def tuning(method: str, **changes: Any) -> dict[str, Any]:
    return {"method": method, **FEW, **FITTING.get(method, {}), **changes}


@dataclass(frozen=True)
class Folder:
    """A model pruned by half, of which every run tunes a copy."""

    sources: Sources
    model: Path
    scratch: Path
    portion: int = PORTION

    def tune(self, name: str, events: Silent | None = None, **parts: Any) -> tuple[TuneReport, Path]:
        """The report of a run under a name, and the folder it wrote. A name that was killed goes on."""
        spec = spec_of(**parts)
        dense = load(spec, self.sources)
        text = self.text(spec, dense, self.scratch / name / "checkpoint")
        written = self.scratch / name / "model"
        shutil.copytree(self.model, written, dirs_exist_ok=True)
        run = Run.of(Checkpoint(self.scratch / name / "checkpoint"), events or Silent())
        window_T = text.holdout_NT[0]
        report, traces = tune(spec, dense, written, text, run, window_T)
        assert verify_tuned(spec, dense, traces, written, window_T).difference < TOLERANCE
        return report, written

    def text(self, spec: Any, dense: LoadedModel, kept: Path | None = None) -> TuningText:
        text = training_text("tune", spec.tune, dense, self.sources, kept=kept, portion=self.portion)
        assert text is not None
        return text


@pytest.fixture
def pruned(tiny: Path, sources: Sources, tmp_path: Path) -> Folder:
    return Folder(sources, halved(tiny, tmp_path / "pruned"), tmp_path)


def halved(model: Path, folder: Path) -> Path:
    """A copy of a model without half of the weights of its linear layers."""
    shutil.copytree(model, folder)
    tensors = weights(folder)
    torch.manual_seed(2)
    for name, tensor in tensors.items():
        if "proj" in name or ".experts." in name:
            tensor[torch.rand(tensor.shape) < 0.5] = 0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "model.safetensors"))


class Killed(BaseException):
    """Stands for kill -9: nothing in the engine catches it."""


def dying(save: Callable[..., None], fatal: int) -> Callable[..., None]:
    """A `save_training` after whose call number `fatal` (from 0) the process is gone."""
    calls = 0

    def save_and_die(*arguments: Any) -> None:
        nonlocal calls
        save(*arguments)
        calls += 1
        if calls == fatal + 1:
            raise Killed

    return save_and_die


def saving_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a resume point after every step of a training."""
    monkeypatch.setattr(Checkpoint, "every_s", 0.0)
