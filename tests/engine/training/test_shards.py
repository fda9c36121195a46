"""A training divided over ranks, beside the same on one: what it makes, and resumed on another number of them."""

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

from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import load, spec_of
from tests.helpers.tuning import Folder, saving_every_step, tuning
from workers.engine.events import Silent
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts import stream
from workers.engine.stages.tune import tune
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run
from workers.engine.training.points import TrainingPoints
from workers.engine.training.portions import PORTION
from workers.engine.training.text import training_text

TUNE = tuning("full", steps=6, batch=4, holdout=5, distill={"weight": 0.5}, weight_decay=0.1)
"""Five held-out windows, which two ranks cannot share evenly."""
ROUNDING = 2e-4
"""Of trained weights relative to the largest of their tensor, after six steps: gradients are summed in another order,
and AdamW divides by roots of small numbers."""


class Stopped(BaseException):
    """Stands for kill -9."""


@dataclass(frozen=True)
class Job:
    """A training of a copy of a model, in a folder under a name."""

    folder: Path
    model: Path
    name: str
    stop: int | None = None
    """The resume point, from 0, after which it stops."""
    portion: int = PORTION

    def run(self, ranks: Ranks) -> None:
        """Train, or go on with what was stopped; the report is written beside the model."""
        spec = spec_of(tune=TUNE)
        sources = Sources(self.folder / "models", self.folder / "data")
        dense = replace(load(spec, sources), ranks=ranks)
        place = self.folder / self.name
        ranks.first(lambda: shutil.copytree(self.model, place / "model", dirs_exist_ok=True))
        run = Run.of(Checkpoint(place / "checkpoint", ranks=ranks), Silent())
        with pytest.MonkeyPatch.context() as patch, suppress(Stopped):
            patch.setattr(stream, "PIECE", 512)  # so that a text arrives little by little
            text = ranks.first(lambda: training_text("tune", spec.tune, dense, sources, portion=self.portion))
            saving_every_step(patch)
            patch.setattr(TrainingPoints, "save", self._stopping(TrainingPoints.save))
            report, _ = tune(spec, dense, place / "model", text, run, text.holdout_NT[0])
            if ranks.leads:
                (place / "report.json").write_text(report.model_dump_json())

    def read(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The report and the weights."""
        place = self.folder / self.name
        return json.loads((place / "report.json").read_text()), load_file(place / "model/model.safetensors")

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


def test_no_step_asks_the_first_rank(pruned: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a resume point is due goes the way of the loss; where more steps are done, no more messages are sent."""
    asked: list[Any] = []
    first = Ranks.first
    monkeypatch.setattr(Ranks, "first", lambda ranks, find: asked.append(find) or first(ranks, find))
    counts = []
    for steps in (2, 6):
        asked.clear()
        pruned.tune(f"{steps} steps", tune=tuning("full", steps=steps, evaluate_every=steps))
        counts.append(len(asked))
    assert counts[0] == counts[1] > 0


def test_ranks_train_what_one_trains_and_another_number_goes_on_with_it(pruned: Folder) -> None:
    whole = Job(pruned.scratch, pruned.model, "whole")
    one, two, damaged = (replace(whole, name=name, stop=2) for name in ("one", "two", "damaged"))
    one, two = (replace(job, portion=5) for job in (one, two))  # of 24 windows, which are told to the other rank
    replace(whole, portion=5).run(Ranks())
    one.run(Ranks())
    on_ranks(2, run_all, [replace(one, stop=None), two, damaged])  # goes on from one to two
    replace(two, stop=None).run(Ranks())  # from two to one
    expected, weights = whole.read()
    for job in (one, two):
        report, found = job.read()
        assert report["resumed_step"] == 3
        for looked, again in zip(expected["curve"], report["curve"], strict=True):
            assert again["holdout_loss"] == pytest.approx(looked["holdout_loss"], rel=1e-6)
        for name, tensor in weights.items():
            assert torch.equal(found[name] == 0, tensor == 0), name
            assert (found[name] - tensor).abs().max() <= ROUNDING * tensor.abs().max(), name

    (point,) = (pruned.scratch / "damaged/checkpoint").glob("tuning-????????")
    part = next(point.glob("*.distcp"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    replace(damaged, stop=None).run(Ranks())
    assert damaged.read()[0]["resumed_step"] == 0, "of a damaged point nothing is used"
