"""Rules of every method for experts: found through the registry, so a new file is tested unseen. E = experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from workers.engine.contracts.facts import DenseUnits, ExpertFacts
from workers.engine.contracts.params import Stat
from workers.engine.registry import Method, methods

EXPERTS, DROPPED, IDLE = 6, 2, 3
"""IDLE: the expert that no token is sent to."""


def expert_methods(stage: Any) -> list[Any]:
    found = [pytest.param(method, id=method.name) for method in methods(stage) if method.units == ("expert",)]
    assert found
    return found


def facts() -> ExpertFacts:
    used_E = torch.tensor([float(expert != IDLE) for expert in range(EXPERTS)], dtype=torch.float64)
    size_E = torch.linspace(1, 2, EXPERTS, dtype=torch.float64)

    def losses(sets: Sequence[Sequence[int]]) -> list[float]:
        return [sum(float(used_E[expert] * size_E[expert]) for expert in gone) for gone in sets]

    return ExpertFacts(DROPPED, 100 * used_E, used_E * size_E, used_E * size_E, losses)


def blocks(method: Method) -> list[DenseUnits]:
    """The first has no mixture."""
    assert Stat.ROUTING in method.needs
    return [DenseUnits(0, [], {}), *(DenseUnits(block, [], {}, experts=facts()) for block in range(1, 4))]


@pytest.mark.parametrize("method", expert_methods("score"))
class TestExpertScore:
    def test_scores_every_expert_of_the_blocks_that_have_some(self, method: Method) -> None:
        assert method.measure is not None
        params = method.params()
        measured = [method.measure(block, params) for block in blocks(method)]
        assert measured[0] == {}
        assert all(values.dtype == torch.float64 and values.isfinite().all() for b in measured for values in b.values())
        scores = method.function(measured, params)
        assert [set(block) for block in scores] == [set(), *[{"expert"}] * 3]
        for block in scores[1:]:
            assert block["expert"].shape == (EXPERTS,)
            assert block["expert"][IDLE] == block["expert"].min()
        again = method.function([method.measure(block, params) for block in blocks(method)], params)
        assert all(torch.equal(a["expert"], b["expert"]) for a, b in zip(scores[1:], again[1:], strict=True))

    def test_tells_the_walk_which_experts_go(self, method: Method) -> None:
        assert method.measure is not None
        gone: list[int] = []
        block = DenseUnits(0, [], {}, experts=replace(facts(), go_on_without=gone.extend))
        found = method.measure(block, method.params())
        assert not gone or found["expert"].argsort()[:DROPPED].sort().values.tolist() == gone


@pytest.mark.parametrize("method", expert_methods("prune"))
class TestExpertPrune:
    def test_the_highest_stay_and_on_ties_the_first(self, method: Method) -> None:
        params = method.params.model_validate({"sparsity": 0.5})
        assert method.function([1.0, 3.0, 2.0, 2.0, 0.0, float("inf")], 3, params) == [1, 2, 5]
        assert method.function([0.0, 0.0], 2, params) == [0, 1]


def test_super_experts_stay() -> None:
    (reap,) = (method for method in methods("score") if method.name == "reap")
    assert reap.measure is not None
    params = reap.params.model_validate({"keep_super_experts": True})
    for large, stays in ((1, True), (3, False)):  # not in the last quarter of the blocks
        measured = [reap.measure(block, params) for block in blocks(reap)]
        peak_E = measured[large]["peak"].clone()
        peak_E[0] = 500
        measured[large] |= {"peak": peak_E}
        infinite = [int(block["expert"].isinf().sum()) for block in reap.function(measured, params)[1:]]
        assert infinite == [int(stays and block == large) for block in (1, 2, 3)]
