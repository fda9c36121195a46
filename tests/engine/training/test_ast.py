"""AST: its optimiser by hand, its masks while they live and after."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.helpers.procedures import Driven
from workers.engine.training.ast import PulledAdamW

RUN = {"steps": 12, "ramp": 0.5, "interval": 2, "learning_rate": 0.05, "distill": None}


class TestOptimizer:
    def test_by_hand(self) -> None:
        """Two weights, the second masked and pulled by 0.1 of itself; two steps with gradients 1 and 3."""
        weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
        pull = torch.tensor([0.0, 0.1], dtype=torch.float64)
        optimizer = PulledAdamW([weight], lambda p: pull * p, lr=0.01, weight_decay=0.5, eps=1e-8)
        w, m, v = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
        for t, gradient in enumerate((1.0, 3.0), start=1):
            weight.grad = torch.full_like(weight, gradient)
            optimizer.step()
            for i, strength in enumerate((0.0, 0.1)):
                w[i] *= 1 - 0.01 * 0.5
                m[i] = 0.9 * m[i] + 0.1 * gradient
                u = m[i] + strength * w[i]
                v[i] = 0.95 * v[i] + 0.05 * u**2
                w[i] -= 0.01 / (1 - 0.9**t) * u / (math.sqrt(v[i] / (1 - 0.95**t)) + 1e-8)
        assert weight.tolist() == pytest.approx(w, rel=1e-12)
        state = optimizer.state[weight]
        assert state["exp_avg"].tolist() == pytest.approx(m, rel=1e-12), "the pull is no part of it"
        assert state["exp_avg_sq"].tolist() == pytest.approx(v, rel=1e-12)

    def test_is_adamw_where_nothing_pulls(self) -> None:
        torch.manual_seed(0)
        ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
        optimizer = PulledAdamW([ours], lambda p: None, lr=0.01, weight_decay=0.1)
        expected = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
        for _ in range(5):
            ours.grad = theirs.grad = torch.randn(5)
            optimizer.step()
            expected.step()
        assert torch.allclose(ours, theirs, rtol=1e-6)

    def test_goes_on_from_its_state(self) -> None:
        found = []
        for stop in (99, 2):
            torch.manual_seed(0)
            weight = nn.Parameter(torch.ones(3))
            optimizer = PulledAdamW([weight], lambda p: 0.1 * p, lr=0.01)
            for step in range(4):
                if step == stop:
                    again = PulledAdamW([weight], lambda p: 0.1 * p, lr=1.0)
                    again.load_state_dict(optimizer.state_dict())
                    optimizer = again
                weight.grad = torch.randn(3)
                optimizer.step()
            found.append(weight.detach())
        assert torch.equal(*found)


def test_the_forward_pass_is_masked_and_its_gradient_goes_to_all_weights() -> None:
    run = Driven.by("ast", 0.5, (2, 4), **RUN)
    dense = run.weights()
    run.procedure.begin(0)
    run.procedure.begin(0)  # a step may begin twice
    masked = run.weights()
    for name, weight_OI in masked.items():
        kept_OI = dense[name].abs().view(-1, 4).argsort(dim=1).argsort(dim=1).view(weight_OI.shape) >= 2
        assert torch.equal(weight_OI, dense[name] * kept_OI), name
    run.loss().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in run.model.named_parameters()}
    for name, weight_OI in masked.items():
        assert gradients[name][weight_OI == 0].any(), "straight through"
    run.procedure.before_update(0)
    assert all(torch.equal(weight_OI, dense[name]) for name, weight_OI in run.weights().items())


@pytest.mark.parametrize(("sparsity", "kept_of"), [(0.5, (2, 4)), (0.5, (4, 8)), (0.6, None)])
def test_masks_live_on_the_ramp_and_hold_still_after_it(sparsity: float, kept_of: tuple[int, int] | None) -> None:
    run = Driven.by("ast", sparsity, kept_of, **RUN)
    masks = []
    for _ in range(12):
        run.step()
        masks.append({name: weight_OI == 0 for name, weight_OI in run.shown().items()})
        if kept_of is not None:
            shown = [mask.view(-1, kept_of[1]).sum(dim=1) for mask in masks[-1].values()]
            assert all((count == kept_of[1] - kept_of[0]).all() for count in shown)
    changes = [any(not torch.equal(before[name], after[name]) for name in before) for before, after in pairwise(masks)]
    assert changes[:5] == [True, False, True, False, True], "every second step, up to the sixth"
    assert not any(changes[5:])
    assert all(weight_OI.count_nonzero() == weight_OI.numel() for weight_OI in run.weights().values()), "dense behind"
    shown = run.shown()
    trained = run.procedure.finished()
    for layer in run.architecture.layers:
        merged_OI = trained.merged(layer.weight, torch.zeros(layer.shape))
        assert torch.equal(merged_OI, shown[layer.weight])
        assert torch.equal(merged_OI == 0, masks[-1][layer.weight])


def test_masked_weights_decay_ever_more_and_others_do_not() -> None:
    """With gradients of zero only the pull moves weights: Adam's steps of the rate's length."""
    run = Driven.by("ast", 0.5, (2, 4), **(RUN | {"learning_rate": 1e-4}), masked_decay=0.01)
    dense, masked = run.weights(), {name: weight_OI == 0 for name, weight_OI in run.shown().items()}
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.procedure.begin(2)
    run.procedure.before_update(2)
    assert run.procedure._decay == pytest.approx(0.01 * 3 / 6)  # type: ignore[attr-defined]
    run.optimizer.step()
    for name, weight_OI in run.weights().items():
        assert torch.equal(weight_OI[~masked[name]], dense[name][~masked[name]])
        smaller = weight_OI[masked[name]].abs() < dense[name][masked[name]].abs()
        assert smaller.float().mean() > 0.9, "those nearer to zero than a step go beyond it"
    run.procedure.begin(9)
    run.procedure.before_update(9)
    assert run.procedure._decay == 0.01  # type: ignore[attr-defined]


def test_figures_say_what_came_back() -> None:
    run = Driven.by("ast", 0.5, (2, 4), **RUN)
    run.step()
    assert run.procedure.figures() == {"sparsity": 0.5, "returned": 0.0}
    run.step()
    assert 0 < run.procedure.figures()["returned"] < 1
