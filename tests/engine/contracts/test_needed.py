"""A method that reads a statistic which it has not declared fails with its name, also where asserts are off."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workers.engine.contracts.facts import AllocationFacts, DenseUnits, LayerTask, LinearStats
from workers.engine.contracts.needed import NotProvided, needed
from workers.engine.contracts.params import Stat
from workers.engine.registry import Method, methods

_OF_LAYERS = [
    method
    for method in [*methods("score"), *methods("prune")]
    if method.needs & (Stat.INPUT_SQ_MEAN | Stat.GRAM | Stat.DENSE_INPUTS) and "weight" in method.units
]


def test_a_value_that_is_there_is_returned() -> None:
    assert needed(0, "a number") == 0


def test_a_value_that_is_not_there_is_named() -> None:
    with pytest.raises(NotProvided, match="the Gram matrix is not there"):
        needed(None, "the Gram matrix")


@pytest.mark.parametrize("method", _OF_LAYERS, ids=lambda method: method.name)
def test_methods_name_the_statistic_that_they_lack(method: Method) -> None:
    weight_OI, stats = torch.ones(2, 4), LinearStats()
    arguments: tuple[Any, ...]
    if method.stage == "score":
        arguments = (weight_OI, stats, method.params())
    else:
        params = method.params(sparsity=0.5)  # type: ignore[call-arg]
        arguments = ([LayerTask("layer", weight_OI, 0.5)], stats, "row", params)
    with pytest.raises(NotProvided, match=r"Stat\.(GRAM|INPUT_SQ_MEAN)"):
        method.function(*arguments)


def test_unit_scorers_and_allocators_name_the_measurement_that_they_lack() -> None:
    block = DenseUnits(0, [], {})
    for method in methods("score"):
        for stat in (Stat.CHANGE, Stat.REMOVAL):
            if stat in method.needs and method.measure is not None:
                with pytest.raises(NotProvided, match=f"Stat.{stat.name}"):
                    method.measure(block, method.params())
    (ranking,) = (method for method in methods("allocate") if Stat.UNIT_SCORES in method.needs)
    with pytest.raises(NotProvided, match=r"Stat\.UNIT_SCORES"):
        ranking.function(AllocationFacts([], {}), 0.5, ranking.params())
