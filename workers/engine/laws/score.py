"""Laws of importance scores of weights. A subclass has a fixture `method`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from workers.engine.laws.random_layers import (
    INPUTS,
    OUTPUTS,
    inputs_of,
    same,
    stats_for,
    stats_of,
    tensors_in,
    weight,
)

if TYPE_CHECKING:
    from workers.engine.registry import Method


class ScoreLaws:
    """Higher is kept; 0 is the least there can be."""

    def test_is_finite_non_negative_and_of_the_weights_shape(self, method: Method) -> None:
        """A score is a finite number >= 0 for each weight."""
        score_OI = method.function(weight(), stats_for(method.needs), method.defaults)
        assert score_OI.shape == (OUTPUTS, INPUTS)
        assert score_OI.isfinite().all()
        assert (score_OI >= 0).all()

    def test_is_deterministic_and_leaves_its_inputs_alone(self, method: Method) -> None:
        """The same inputs give the same bits, and are not written to."""
        weight_OI, stats = weight(), stats_for(method.needs)
        before = tensors_in(stats)
        first = method.function(weight_OI, stats, method.defaults)
        assert torch.equal(first, method.function(weight_OI, stats, method.defaults))
        assert torch.equal(weight_OI, weight())
        assert same(before, tensors_in(stats))

    def test_takes_half_precision(self, method: Method) -> None:
        """Of bfloat16 weights too, scores are float32."""
        score_OI = method.function(weight().bfloat16(), stats_for(method.needs), method.defaults)
        assert score_OI.dtype == torch.float32

    def test_a_zero_weight_is_the_least_important_of_its_row(self, method: Method) -> None:
        """No weight of a row has a lower score than one that is zero already."""
        weight_OI = weight()
        weight_OI[:, 5] = 0
        score_OI = method.function(weight_OI, stats_for(method.needs), method.defaults)
        assert (score_OI[:, 5:6] <= score_OI).all()

    def test_dead_inputs_and_dead_outputs_have_a_score(self, method: Method) -> None:
        """Scores are finite where an input was always zero, or a row of weights is."""
        weight_OI, x_NI = weight(), inputs_of()
        weight_OI[3], x_NI[:, 7] = 0, 0
        score_OI = method.function(weight_OI, stats_of(x_NI, method.needs), method.defaults)
        assert score_OI.isfinite().all()

    def test_parameters_survive_json(self, method: Method) -> None:
        """Parameters come back from JSON as they were."""
        params = method.defaults
        assert method.params.model_validate_json(params.model_dump_json()) == params
