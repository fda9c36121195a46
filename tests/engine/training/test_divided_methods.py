"""Every method that prunes while it trains, divided over two ranks beside the same on one, and on one and then the
other."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import EXAMPLES, SIZES, SaveModel, load, spec_of
from tests.helpers.training import TARGETS, training
from workers.engine.checks.tries import Tries
from workers.engine.events import Silent
from workers.engine.methods.train.gradual import GradualParams
from workers.engine.ranks import Ranks
from workers.engine.registry import methods
from workers.engine.sources.resolve import Sources
from workers.engine.stages.allocate import allocate
from workers.engine.stages.train import train
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run
from workers.engine.training.loop import Loop
from workers.engine.training.points import TrainingPoints
from workers.engine.training.text import training_text

ROUNDING = 1e-3
"""Of trained weights relative to the largest of their tensor, after four steps: gradients are summed in another order,
and AdamW divides by roots of small numbers. Measured: 2e-4 at most."""
LOSS = 1e-5
"""Relative, of held-out losses. Measured: 3e-8 where the same weights are masked, 7e-6 where ELSA had masked one of
1,500 otherwise for a while."""
TIES = 1e-3
"""Share of a tensor's weights that may be masked otherwise: their scores differ by less than sums do that are rounded
in another order. Measured: none at the end."""
RATE = 3e-3
"""With which weights move by some per cent in four steps."""
NARROW = {"model": {"id": "narrow"}}
"""A model whose MLPs have one channel: of two ranks one has no part of their first matrices. Its output head is its
embedding."""
MIXED = {
    "dataset": "mixed.jsonl",
    "domains": {"column": "domain", "shares": {"novels": 1.0, "myth": 2.0}, "dynamic": {}},
}


FEWER: dict[str, Any] = {"steps": 4, "evaluate_every": 2, "learning_rate": RATE}
HALF = 2
"""The step after which there is a resume point, of which a copy is kept."""


def job(method: str, target: dict[str, Any], *, model: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Parts of a spec."""
    train = training(method, **FEWER | changes)
    return {"score": None, "calibrate": None, "train": train} | target | (model or {})


WEIGHTS, UNITS, HIDDEN = TARGETS["weight"], TARGETS["head"], TARGETS["hidden"]
SHAPE = {"prune": {"method": "shape", "hidden": 24, "heads": 2, "layers": 1, "channels": 30}}
BEGIN = {
    "ast": job("ast", WEIGHTS["2:4"], ramp=0.8),
    "elsa": job("elsa", WEIGHTS["unstructured"], model=NARROW, settle=0.25),
    "sheared": job("sheared", SHAPE, distill={"weight": 0.5}),
    "efficient_llm, made up for": job("efficient_llm", UNITS["ranking"]),
    "policy_gradient": job("policy_gradient", UNITS["uniform"], learning_rate=1.0, estimator="exact")
    | {"compute": {"dtype": "bfloat16"}},
}
"""Begun on two ranks."""
GO_ON = {
    "gradual": job("gradual", WEIGHTS["unstructured"], model=NARROW, ramp=0.8, **MIXED),
    "compresso": job("compresso", UNITS["ranking"], gate_rate=1.0, multiplier_rate=1.0),
    "efficient_llm": job("efficient_llm", HIDDEN["hidden"], model=NARROW, saliency="squared_gradient"),
}
"""Begun on one rank; two go on."""
COME_BACK = ("elsa", "sheared", "efficient_llm, made up for")
"""Begun on two; one goes on."""


@dataclass(frozen=True)
class Training:
    """A training of a spec, in a folder under a name."""

    folder: Path
    name: str
    parts: dict[str, Any]
    alone: bool = False
    """Whether the method is taken for one that does not divide."""

    def run(self, ranks: Ranks) -> None:
        """Train, or go on from the point that is there; the report and what goes are written beside the model."""
        spec, sources = spec_of(**self.parts), Sources(self.folder / "models", self.folder / "data")
        dense = replace(load(spec, sources), ranks=ranks)
        text = training_text("train", spec.train, dense, sources)
        run = Run.of(Checkpoint(self.points, ranks=ranks), Silent())
        spread = None if spec.trained_allocation else allocate(spec, dense, None, sources, None, Tries(spec, run))
        with pytest.MonkeyPatch.context() as patch, self.halved(ranks):
            if self.alone:
                patch.setattr(GradualParams, "divides", False)
            _, units, _, report = train(spec, dense, spread, self.place / "model", text, run, text.holdout_NT[0])
        if ranks.leads:
            found = {"report": report.model_dump(), "scores": units and units.scores}
            (self.place / "found.json").write_text(json.dumps(found))

    @contextmanager
    def halved(self, ranks: Ranks) -> Iterator[None]:
        """Within it there is a point at half of the steps too, and all there is then is copied."""
        save = TrainingPoints.save

        def saved(points: TrainingPoints, tensors: Any, state: Any, step: int) -> None:
            save(points, tensors, state, step)
            if step == HALF:
                ranks.first(lambda: shutil.copytree(self.points, self.place / "half"))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "_due", lambda loop: loop.state.step + 1 == HALF)
            patch.setattr(TrainingPoints, "save", saved)
            yield

    def from_half(self, of: Training) -> Training:
        """This, to go on from where another was at half."""
        shutil.copytree(of.place / "half", self.points)
        return self

    @property
    def place(self) -> Path:
        return self.folder / self.name

    @property
    def points(self) -> Path:
        return self.place / "checkpoint"

    def read(self) -> tuple[dict[str, Any], list[dict[str, list[float]]] | None, dict[str, torch.Tensor]]:
        """The report, the units' scores, and the weights."""
        found = json.loads((self.place / "found.json").read_text())
        return found["report"], found["scores"], load_file(self.place / "model/model.safetensors")


def run_all(ranks: Ranks, trainings: list[Training]) -> None:
    if ranks.total > 1:
        gc.freeze()  # what is imported: else collecting it is a third of the time
    for one in trainings:
        one.run(ranks)


@pytest.fixture
def folder(save_model: SaveModel, sources: Sources) -> Path:
    """Models and data; trainings are made beside them."""
    two_blocks = SIZES | {"num_hidden_layers": 2}
    save_model("tiny", LlamaConfig(**two_blocks))
    save_model("narrow", LlamaConfig(**two_blocks | {"intermediate_size": 1, "tie_word_embeddings": True}))
    text = (EXAMPLES / "data/calibration.txt").read_text()[:12_000]
    (sources.data_dir / "calibration.txt").write_text(text)
    rows = [{"text": text[i : i + 500], "domain": ("novels", "myth")[i % 1000 // 500]} for i in range(0, 12_000, 500)]
    (sources.data_dir / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sources.data_dir.parent


def test_ranks_train_what_one_trains_and_another_number_goes_on_with_it(folder: Path) -> None:
    jobs = BEGIN | GO_ON
    assert {parts["train"]["method"] for parts in jobs.values()} == {method.name for method in methods("train")}
    whole = {name: Training(folder, f"whole/{name}", parts) for name, parts in jobs.items()}
    run_all(Ranks(), [*whole.values()])
    begun = {name: replace(whole[name], name=f"begun/{name}") for name in BEGIN}
    gone_on = {name: replace(whole[name], name=f"gone on/{name}").from_half(whole[name]) for name in GO_ON}
    alone = replace(whole["gradual"], name="alone", alone=True)
    on_ranks(2, run_all, [*begun.values(), *gone_on.values(), alone])
    back = {name: replace(whole[name], name=f"back/{name}").from_half(begun[name]) for name in COME_BACK}
    run_all(Ranks(), [*back.values()])
    for resumed, found in ((0, begun), (2, gone_on), (2, back)):
        for name, other in found.items():
            assert other.read()[0]["resumed_step"] == resumed, other.name
            same(other, whole[name])
    by_first, expected = alone.read()[2], whole["gradual"].read()[2]
    assert all(torch.equal(by_first[name], tensor) for name, tensor in expected.items())


def same(other: Training, whole: Training) -> None:
    """Assert that one made what the other did, up to rounding."""
    expected, scores, weights = whole.read()
    report, found_scores, found = other.read()
    for looked, again in zip(expected["curve"], report["curve"], strict=True):
        assert again["holdout_loss"] == pytest.approx(looked["holdout_loss"], rel=LOSS), other.name
        assert again["figures"] == pytest.approx(looked["figures"], abs=1e-4), other.name
    assert gone(found_scores) == gone(scores), other.name
    for name, tensor in weights.items():
        differing = (tensor == 0) != (found[name] == 0)
        assert (tensor == 0).sum() == (found[name] == 0).sum(), (other.name, name)
        assert differing.float().mean() <= TIES, (other.name, name)
        off = (found[name] - tensor).masked_fill(differing, 0).abs().max()
        assert off <= ROUNDING * tensor.abs().max(), (other.name, name)


def gone(scores: list[dict[str, list[float]]] | None) -> Any:
    """Block -> kind -> whether each unit goes."""
    return scores and [{kind: [score < 0 for score in of_units] for kind, of_units in one.items()} for one in scores]
