"""Tunings of a copy of a model, on any number of ranks, which may be stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.small_models import load, spec_of
from tests.helpers.tuning import saving_every_step
from workers.engine.events import Silent
from workers.engine.model.loaded import in_parts
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts import stream
from workers.engine.stages.tune import tune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run
from workers.engine.training import shards
from workers.engine.training.points import TrainingPoints
from workers.engine.training.portions import PORTION
from workers.engine.training.text import training_text


class Stopped(BaseException):
    """Stands for kill -9."""


@dataclass(frozen=True)
class Job:
    """A training of a copy of a model, in a folder under a name."""

    folder: Path
    model: Path
    name: str
    parts: dict[str, Any]
    """Of the spec."""
    stop: int | None = None
    """The resume point, from 0, after which it stops."""
    portion: int = PORTION

    def run(self, ranks: Ranks) -> None:
        """Train, or go on with what was stopped; the report is written beside the model."""
        spec = spec_of(**self.parts)
        sources = Sources(self.folder / "models", self.folder / "data")
        dense = replace(load(spec, sources), ranks=ranks)
        place = self.folder / self.name
        ranks.first(lambda: shutil.copytree(self.model, place / "model", dirs_exist_ok=True))
        run = Run.of(Checkpoint(place / "checkpoint", ranks=ranks), Silent())
        with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
            patch.setattr(stream, "PIECE", 512)  # so that a text arrives little by little
            kept = place / "checkpoint"
            text = ranks.first(lambda: training_text("tune", spec.tune, dense, sources, None, kept, self.portion))
            saving_every_step(patch)
            patch.setattr(TrainingPoints, "save", self._stopping(TrainingPoints.save))
            reads = count()
            patch.setattr(shards, "in_parts", lambda *args: (next(reads), in_parts(*args))[1])
            report, _ = tune(spec, dense, place / "model", text, run, text.holdout_NT[0])
            if ranks.leads:
                (place / "report.json").write_text(report.model_dump_json())
                (place / "reads").write_text(str(next(reads)))

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The report and the weights."""
        place = self.folder / self.name
        return json.loads((place / "report.json").read_text()), load_file(place / "model/model.safetensors")

    @property
    def reads(self) -> int:
        """How often the model was read by the attempt that ended."""
        return int((self.folder / self.name / "reads").read_text())

    def _stopping(self, save: Callable[..., None]) -> Callable[..., None]:
        calls = count()

        def saved(*args: Any) -> None:
            save(*args)
            if next(calls) == self.stop:
                raise Stopped

        return saved


def run_all(ranks: Ranks, jobs: list[Job]) -> None:
    for job in jobs:
        job.run(ranks)
