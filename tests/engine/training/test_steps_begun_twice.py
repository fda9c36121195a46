"""A step whose passes are made twice, as on a GPU where an operation has no kernel that repeats, counts once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine.training.test_pruning_aware import Run
from tests.helpers.small_models import spec_of
from tests.helpers.training import TARGETS, training
from workers.engine.events import Silent
from workers.engine.model.repeatable import Repeatable
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.training import loop


class Twice(Repeatable):
    """Every step fails once after its backward pass."""

    def run(self, passes: Callable[[], Any], module: nn.Module) -> Any:
        passes()
        module.zero_grad()
        return passes()


@pytest.mark.parametrize("method", ["ast", "compresso", "efficient_llm", "sheared"])
def test_a_training_whose_steps_all_begin_twice_ends_in_the_same_bytes(
    method: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS["weight"]["2:4"] if method == "ast" else TARGETS["head"]["uniform"]
    spec = spec_of(score=None, calibrate=None, train=training(method), **target)
    for name in ("once", "twice"):
        compress(spec, tmp_path / name, sources, Silent(), tmp_path / name / "checkpoint")
        monkeypatch.setattr(loop, "Repeatable", Twice)
    once, twice = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("once", "twice"))
    assert once == twice


@pytest.mark.parametrize("passes", [1, 2], ids=["in its first part", "in its second part"])
def test_inputs_of_a_step_that_fails_and_begins_again_are_counted_once(passes: int) -> None:
    """It has two parts, as where not all windows go through at once."""
    once, twice = Run(dampening=0.01, ends=9), Run(dampening=0.01, ends=9)
    for run, begun in ((once, [2]), (twice, [passes, 2])):
        for step in range(2):
            run.step(step)
        for count in begun:
            run.procedure.begin(2)
            for part in range(count):
                run.loss(10 + part)
        run.procedure._recent.stop()
    for name, count in once.procedure._recent.tokens.items():
        assert count > 0
        assert twice.procedure._recent.tokens[name] == count
        assert torch.equal(twice.procedure._recent.sums[name], once.procedure._recent.sums[name])
    once.procedure.begin(3)
    once.loss(3)
    assert all(once.procedure._recent.tokens[name] > count for name, count in twice.procedure._recent.tokens.items())
