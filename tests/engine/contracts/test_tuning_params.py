from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.small_models import spec_of
from workers.engine.contracts.tuning_params import TuneMethodParams
from workers.engine.spec import CompressionSpec

FULL: dict[str, Any] = {"method": "full", "dataset": "calibration.txt"}


def params(**changes: Any) -> TuneMethodParams:
    found = spec_of(tune=FULL | changes).tune
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("tokens", "given", "steps"),
    [(2048, {}, 1), (2049, {}, 2), (2_000_000, {"batch": 4, "sequence_length": 128}, 3907), (8, {}, 1)],
)
def test_steps_follow_from_a_budget_of_tokens(tokens: int, given: dict[str, Any], steps: int) -> None:
    assert params(tokens=tokens, **given).steps == steps
    assert params(tokens=tokens, steps=steps, **given).steps == steps
    assert params().tokens is None


def test_a_stored_spec_with_a_budget_is_read_again() -> None:
    spec = spec_of(tune=FULL | {"tokens": 10_000})
    assert CompressionSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert CompressionSpec.model_validate_json(spec.canonical()) == spec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tokens": 10_000, "steps": 200}, "10000 tokens are 5 steps of 8 x 256, and `steps` says 200: leave one out"),
        ({"tokens": "many"}, "valid integer"),
        ({"tokens": True}, "valid integer"),
        ({"tokens": 10_000, "batch": 0}, "greater than or equal to 1"),
        ({"tokens": 10_000, "batch": None}, "valid integer"),
        ({"tokens": 10**12}, "less than or equal to 1000000"),
        ({"tokens": 0}, "greater than or equal to 8"),
        ({"tokens": 10_000, "warmup_steps": 5}, "lower `warmup_steps`"),
    ],
)
def test_budgets_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        params(**given)
