"""Jobs that prune while they train, killed at random steps: each ends in the bytes of an undisturbed one.

`make chaos` runs it: a process for each attempt, killed with SIGKILL where it happens to be, and a resume point a step.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.helpers.running import Running, weights, write_spec
from tests.helpers.small_models import SIZES, SaveModel, spec_of
from tests.helpers.training import jobs
from workers.engine.registry import Method
from workers.warm import Warm

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]
JOBS = jobs()
STEPS, KILLS = 30, 5


@pytest.mark.parametrize(("method", "target", "parts"), JOBS, ids=[f"{m.name}-{t}" for m, t, _ in JOBS])
def test_killed_at_random_steps_it_ends_in_the_same_bytes(
    method: Method, target: str, parts: dict[str, Any], save_model: SaveModel, tmp_path: Path, parent: Warm
) -> None:
    save_model("tiny", LlamaConfig(**SIZES))
    spec = spec_of(**parts | {"train": parts["train"] | {"steps": STEPS}}).model_dump(mode="json")
    whole = write_spec(tmp_path / "whole", spec)
    code, events, log = Running(whole, parent, checkpoint="whole-points").finish()
    assert code == 0, log
    expected = events[-1]["report"]["train"]["curve"]
    for step in sorted(random.Random(f"{method.name} {target}").sample(range(STEPS), KILLS)):
        running = Running(write_spec(tmp_path / f"killed-{step}", spec), parent, checkpoint="points")
        running.until("checkpoint", step=step)
        running.child.signal(signal.SIGKILL)
        assert running.finish()[0] == -signal.SIGKILL
    last = write_spec(tmp_path / "last", spec)
    code, events, log = Running(last, parent, checkpoint="points").finish()
    assert code == 0, log
    found = events[-1]["report"]["train"]
    assert found["resumed_step"] > step
    assert json.dumps(found["curve"]) == json.dumps(expected)
    assert weights(last) == weights(whole)
