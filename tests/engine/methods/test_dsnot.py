"""DSnoT by hand, and what its swaps may and may not do. O = outputs, I = inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.maths.selection import dropped
from workers.engine.methods.refine.dsnot import DsnotParams, refine

OUTPUTS, INPUTS = 24, 64
KeptOf = tuple[int, int] | None
PATTERNS: list[KeptOf] = [None, (2, 4), (1, 4), (5, 8)]


def stats_of(mean_I: Tensor, variance_I: Tensor | None = None, window_tokens: int = 1) -> LinearStats:
    variance_I = torch.ones_like(mean_I) if variance_I is None else variance_I
    return LinearStats(
        tokens=10 * window_tokens,
        window_tokens=window_tokens,
        input_sq_mean_I=variance_I + mean_I**2,
        input_mean_I=mean_I,
        input_variance_I=variance_I,
    )


def random_case(kept_of: KeptOf) -> tuple[Tensor, Tensor, LinearStats]:
    """A weight, its magnitude mask at half (or N:M), statistics of inputs that are not centred."""
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(OUTPUTS, INPUTS, generator=generator)
    stats = stats_of(
        torch.randn(INPUTS, generator=generator), torch.rand(INPUTS, generator=generator) + 0.1, window_tokens=16
    )
    sparsity = 0.5 if kept_of is None else 1 - kept_of[0] / kept_of[1]
    mask_OI = dropped(weight_OI.abs(), sparsity, "row", kept_of)
    return weight_OI, weight_OI.masked_fill(mask_OI, 0), stats


def refined(weight_OI: Tensor, pruned_OI: Tensor, stats: LinearStats, kept_of: KeptOf = None, **params: Any) -> Tensor:
    return refine(LayerTask("layer", weight_OI, 0.5), pruned_OI, stats, DsnotParams(**params), kept_of)


def error(weight_OI: Tensor, kept_OI: Tensor, stats: LinearStats) -> Tensor:
    """Absolute contribution of the missing weights to each output over a window, float64 [O]."""
    assert stats.input_mean_I is not None
    mean_I = stats.input_mean_I.double() * stats.window_tokens
    return (weight_OI.double().masked_fill(kept_OI, 0) @ mean_I).abs()


def kept_columns(weights: list[float], pruned: set[int], stats: LinearStats, **params: Any) -> list[int]:
    """The columns kept of a single row from which `pruned` were missing."""
    weight_1I = torch.tensor([weights])
    pruned_1I = torch.tensor([[0.0 if i in pruned else w for i, w in enumerate(weights)]])
    return refined(weight_1I, pruned_1I, stats, **params)[0].nonzero().flatten().tolist()


class TestByHand:
    def test_swaps_until_a_swap_would_overshoot(self) -> None:
        # Means 1: the missing 2 + 1 make an error of 3. In comes 2, out goes -0.5, the least important of the negative:
        # 3 - 2 - 0.5 = 0.5. Next, 1 in and -3 out: 0.5 - 1 - 3 < 0, refused.
        assert kept_columns([5, -0.5, 2, 1, -3], {2, 3}, stats_of(torch.ones(5))) == [0, 2, 4]

    def test_goes_on_past_zero_where_that_is_allowed(self) -> None:
        # As above, with the second swap taken: -3.5. The missing are then -0.5, 0, -3, all of them once kept: the end.
        kept = kept_columns([5, -0.5, 2, 1, -3], {2, 3}, stats_of(torch.ones(5)), same_sign=False)
        assert kept == [0, 2, 3]

    def test_turns_round_past_zero(self) -> None:
        # Error 4 - 1 = 3. 4 in, -2 out: 3 - 4 - 2 = -3. Now from the other side, -1 in, 1 out: -3 + 1 + 1 = -1. The
        # only missing one that was missing at first is gone: the end.
        weights = [9.0, -2.0, 1.0, 4.0, -1.0]
        assert kept_columns(weights, {3, 4}, stats_of(torch.ones(5)), same_sign=False) == [0, 3, 4]

    def test_lowers_an_error_below_zero(self) -> None:
        # The mirror of the first case.
        assert kept_columns([-5, 0.5, -2, -1, 3], {2, 3}, stats_of(torch.ones(5))) == [0, 2, 4]

    def test_prefers_inputs_that_vary_little(self) -> None:
        # Missing 3 and 2, error 5; out goes -1 either way. By effect 3 comes first; over the variances 9 and 1 it is 2.
        stats = stats_of(torch.ones(4), torch.tensor([1.0, 1.0, 9.0, 1.0]))
        assert kept_columns([8, -1, 3, 2], {2, 3}, stats) == [0, 3]
        assert kept_columns([8, -1, 3, 2], {2, 3}, stats, variance_power=0) == [0, 2]

    def test_importance_counts_the_inputs_norm(self) -> None:
        # Error 3. Of the negative effects -1 has the smaller weight, but its input a norm of sqrt(1 + 24) = 5. So -2 is
        # less important, 2 * sqrt(1 + 1). Out it goes, 3 in: 3 - 3 - 2 is past zero, which is allowed here.
        stats = stats_of(torch.ones(4), torch.tensor([1.0, 24.0, 1.0, 1.0]))
        assert kept_columns([8, -1, -2, 3], {3}, stats, same_sign=False) == [0, 1, 3]

    def test_two_of_four_swaps_within_the_group(self) -> None:
        # Error 3 + 1 = 4. 3 comes in, and the less important of its group goes out, 4: 4 - 3 + 4 = 5 is worse, refused.
        # With -4 there it is 4 - 3 - 4 < 0, refused too. With 2: 4 - 3 + 2 = 3, taken; then 1 in and 5 out is worse.
        def kept(last: float) -> list[int]:
            weight_1I = torch.tensor([[3.0, 1.0, 5.0, last]])
            pruned_1I = torch.tensor([[0.0, 0.0, 5.0, last]])
            return refined(weight_1I, pruned_1I, stats_of(torch.ones(4)), (2, 4))[0].nonzero().flatten().tolist()

        assert kept(4.0) == [2, 3]
        assert kept(-4.0) == [2, 3]
        assert kept(2.0) == [0, 2]

    def test_the_threshold_is_in_units_of_a_window(self) -> None:
        # The error is 3 + 2 a token, 500 over a window of 100. 3 in, -1 out leaves 100.
        for window_tokens, swaps in ((100, True), (99, False)):
            stats = stats_of(torch.ones(4), window_tokens=window_tokens)
            assert (kept_columns([8, -1, 3, 2], {2, 3}, stats, threshold=499) == [0, 2]) == swaps


def row_by_definition(
    weights: list[float], kept: list[bool], stats: LinearStats, kept_of: KeptOf, *, same_sign: bool
) -> list[bool]:
    """One row, one swap after the other, every choice made anew among the weights not yet touched."""
    assert stats.input_mean_I is not None
    assert stats.input_variance_I is not None
    assert stats.input_sq_mean_I is not None
    effects = [w * m * stats.window_tokens for w, m in zip(weights, stats.input_mean_I.tolist(), strict=True)]
    variances, norms = stats.input_variance_I.tolist(), stats.input_sq_mean_I.sqrt().tolist()
    missing, present, kept = {i for i, k in enumerate(kept) if not k}, {i for i, k in enumerate(kept) if k}, list(kept)
    error = first = sum(effects[i] for i in missing)
    for _ in range(50):
        if abs(error) <= 0.1:
            break
        sign = 1 if error > 0 else -1
        incoming = max(
            (i for i in missing if sign * effects[i] > 0), key=lambda i: sign * effects[i] / variances[i], default=None
        )
        if incoming is None:
            break
        if kept_of is None:
            partners = [i for i in present if sign * effects[i] < 0]
        else:
            partners = [i for i in present if i // kept_of[1] == incoming // kept_of[1]]
        outgoing = min(partners, key=lambda i: abs(weights[i]) * norms[i], default=None)
        if outgoing is None:
            break
        after = error - effects[incoming] + effects[outgoing]
        if same_sign and (after * first < 0 or abs(after) >= abs(error)):
            break
        kept[incoming], kept[outgoing], error = True, False, after
        missing.remove(incoming)
        present.remove(outgoing)
    return kept


@pytest.mark.parametrize("kept_of", PATTERNS, ids=str)
class TestOnRandomRows:
    @pytest.mark.parametrize("same_sign", [True, False])
    def test_does_what_the_definition_says(self, kept_of: KeptOf, same_sign: bool) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        expected = [
            row_by_definition(weight_I.tolist(), kept_I.tolist(), stats, kept_of, same_sign=same_sign)
            for weight_I, kept_I in zip(weight_OI, pruned_OI != 0, strict=True)
        ]
        assert refined(weight_OI, pruned_OI, stats, kept_of, same_sign=same_sign).tolist() == expected

    @pytest.mark.parametrize("same_sign", [True, False])
    def test_keeps_as_many_in_every_row_and_group(self, kept_of: KeptOf, same_sign: bool) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        kept_OI = refined(weight_OI, pruned_OI, stats, kept_of, same_sign=same_sign)
        assert kept_OI.dtype == torch.bool
        assert not torch.equal(kept_OI, pruned_OI != 0)
        m = INPUTS if kept_of is None else kept_of[1]
        n = INPUTS // 2 if kept_of is None else kept_of[0]
        assert (kept_OI.reshape(-1, m).sum(dim=1) == n).all()

    def test_no_error_grows_and_some_shrink(self, kept_of: KeptOf) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        before_O = error(weight_OI, pruned_OI != 0, stats)
        after_O = error(weight_OI, refined(weight_OI, pruned_OI, stats, kept_of), stats)
        # Errors are some tens, sums of 64 terms in float32: 1e-4 is a hundred roundings.
        assert (after_O <= before_O + 1e-4).all()
        assert after_O.sum() < before_O.sum() - 1

    def test_a_row_within_the_threshold_is_left_alone(self, kept_of: KeptOf) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        kept_OI = pruned_OI != 0
        assert torch.equal(refined(weight_OI, pruned_OI, stats, kept_of, threshold=1e9), kept_OI)
        before_O = error(weight_OI, kept_OI, stats)
        middle = before_O.sort().values[OUTPUTS // 2 - 1 : OUTPUTS // 2 + 1].mean().item()
        same_O = (refined(weight_OI, pruned_OI, stats, kept_of, threshold=middle) == kept_OI).all(dim=1)
        assert same_O[before_O <= middle].all()
        assert not same_O.all()

    def test_each_cycle_swaps_at_most_one_pair_a_row(self, kept_of: KeptOf) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        for cycles in (1, 3):
            kept_OI = refined(weight_OI, pruned_OI, stats, kept_of, cycles=cycles, same_sign=False)
            changed_O = (kept_OI != (pruned_OI != 0)).sum(dim=1)
            assert changed_O.max() == 2 * cycles

    def test_the_order_of_rows_and_of_inputs_does_not_matter(self, kept_of: KeptOf) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        generator = torch.Generator().manual_seed(1)
        rows_O = torch.randperm(OUTPUTS, generator=generator)
        # Inputs move as groups, and within their group.
        m = 1 if kept_of is None else kept_of[1]
        within_GM = torch.rand(INPUTS // m, m, generator=generator).argsort(dim=1)
        columns_GM = torch.arange(INPUTS).reshape(-1, m).gather(1, within_GM)
        columns_I = columns_GM[torch.randperm(INPUTS // m, generator=generator)].flatten()
        assert stats.input_mean_I is not None
        assert stats.input_variance_I is not None
        moved = stats_of(stats.input_mean_I[columns_I], stats.input_variance_I[columns_I], stats.window_tokens)
        kept_OI = refined(weight_OI, pruned_OI, stats, kept_of)
        moved_OI = refined(weight_OI[rows_O][:, columns_I], pruned_OI[rows_O][:, columns_I], moved, kept_of)
        assert torch.equal(moved_OI, kept_OI[rows_O][:, columns_I])

    def test_leaves_its_inputs_alone_and_repeats_itself(self, kept_of: KeptOf) -> None:
        weight_OI, pruned_OI, stats = random_case(kept_of)
        first_OI = refined(weight_OI, pruned_OI, stats, kept_of)
        assert torch.equal(first_OI, refined(weight_OI, pruned_OI, stats, kept_of))
        again_weight_OI, again_pruned_OI, _ = random_case(kept_of)
        assert torch.equal(weight_OI, again_weight_OI)
        assert torch.equal(pruned_OI, again_pruned_OI)


@pytest.mark.parametrize("kept_of", [None, (2, 4)], ids=str)
@pytest.mark.parametrize("same_sign", [True, False])
def test_dead_and_constant_inputs_and_zero_weights_break_nothing(kept_of: KeptOf, same_sign: bool) -> None:
    weight_OI, pruned_OI, stats = random_case(kept_of)
    assert stats.input_mean_I is not None
    assert stats.input_variance_I is not None
    mean_I, variance_I = stats.input_mean_I.clone(), stats.input_variance_I.clone()
    mean_I[::5], variance_I[::5] = 0, 0  # never anything but 0
    variance_I[1::5] = 0  # always the same
    weight_OI[:4] = weight_OI[:4].abs() * mean_I.sign()  # rows without a single negative effect
    weight_OI[4:8, ::3] = 0  # weights that are zero though nobody pruned them
    pruned_OI = torch.where(pruned_OI == 0, 0, weight_OI)
    kept_OI = refined(
        weight_OI,
        pruned_OI,
        stats_of(mean_I, variance_I, stats.window_tokens),
        kept_of,
        cycles=1000,
        same_sign=same_sign,
    )
    m = INPUTS if kept_of is None else kept_of[1]
    assert torch.equal(kept_OI.reshape(-1, m).sum(dim=1), (pruned_OI != 0).reshape(-1, m).sum(dim=1))
    assert (kept_OI[:, ::5] <= (pruned_OI != 0)[:, ::5]).all()  # an input without effect gains no weight


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_nothing_to_swap(sparsity: float) -> None:
    weight_OI, _, stats = random_case(None)
    pruned_OI = weight_OI * (1 - sparsity)
    assert torch.equal(refined(weight_OI, pruned_OI, stats), pruned_OI != 0)


def test_takes_half_precision() -> None:
    weight_OI, pruned_OI, stats = random_case(None)
    kept_OI = refined(weight_OI.bfloat16(), pruned_OI.bfloat16(), stats)
    assert (kept_OI.sum(dim=1) == INPUTS // 2).all()
