"""A step whose passes are made twice, as on a GPU where an operation has no kernel that repeats, counts once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

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
