from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.small_models import spec_of
from tests.helpers.tuning import tuning
from workers.engine.training.schedule import rate_schedule


def rates(**changes: Any) -> list[float]:
    """The rate of each of 20 steps, of which 4 are the warm-up, as a share of the full one."""
    params = spec_of(tune=tuning("full", steps=20, warmup_steps=4, learning_rate=1.0, **changes)).tune
    assert params is not None
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=params.learning_rate)
    schedule = rate_schedule(optimizer, params)
    found = []
    for _ in range(20):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    return found


def test_the_warm_up_is_linear_and_the_default_falls_linearly() -> None:
    assert rates() == pytest.approx([0, 0.25, 0.5, 0.75, *((20 - step) / 16 for step in range(4, 20))])


def test_half_a_cosine() -> None:
    found = rates(schedule="cosine")
    assert found[4] == 1
    assert found[12] == pytest.approx(0.5)


def test_a_rate_that_stays_falls_over_the_last_tenth() -> None:
    assert rates(schedule="warmup_stable_decay")[4:] == pytest.approx([1.0] * 15 + [0.5])
