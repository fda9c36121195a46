"""ELSA: its three steps by hand, the exact count at the end, masks that hold still behind the projection."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.procedures import Driven

RUN = {"steps": 10, "interval": 2, "learning_rate": 0.02, "penalty": 0.5}
UP = "model.layers.0.mlp.up_proj.weight"


def state(run: Driven, part: str) -> Tensor:
    return run.procedure.state[f"{part}/{UP}"]


def kept(score: Tensor, count: int) -> Tensor:
    """Boolean: all but the `count` lowest."""
    return (score.flatten().argsort().argsort() >= count).view(score.shape)


def test_the_steps_by_hand() -> None:
    run = Driven.by("elsa", 0.8, **RUN)
    count = round(16 * 24 * 0.8)
    x = run.weights()[UP]
    z, u = x * kept(x.square(), count), torch.zeros_like(x)
    assert torch.equal(state(run, "z"), z), "the dense weights, cut by size as there are no moments yet"
    for step in range(4):
        run.optimizer.zero_grad()
        run.procedure.begin(step)
        run.loss(step).backward()
        gradient = run.model.get_parameter(UP).grad.clone()
        run.procedure.before_update(step)
        found = run.model.get_parameter(UP).grad
        torch.testing.assert_close(found, gradient + 0.5 * (x - z + u))
        run.optimizer.step()
        run.procedure.after_update(step, run.optimizer)
        x = run.weights()[UP]
        if not step:
            of_first = run.optimizer.state[run.model.get_parameter(UP)]["exp_avg_sq"]
            torch.testing.assert_close(of_first, 0.05 * found.square())
        if step % 2:
            moments = run.optimizer.state[run.model.get_parameter(UP)]["exp_avg_sq"]
            z = (x + u) * kept((moments + 1e-16) * (x + u).square(), count)
            u = u + x - z
        torch.testing.assert_close(state(run, "z"), z)
        torch.testing.assert_close(state(run, "u"), u)
    assert u.any()
    assert int((z == 0).sum()) == count


@pytest.mark.parametrize("settle", [0.0, 0.3])
@pytest.mark.parametrize(("sparsity", "kept_of"), [(0.9, None), (0.5, (2, 4)), (0.75, (2, 8))])
def test_ends_with_exactly_as_many_and_masks_never_change_after_the_projection(
    sparsity: float, kept_of: tuple[int, int] | None, settle: float
) -> None:
    run = Driven.by("elsa", sparsity, kept_of, **RUN, settle=settle)
    projection = 10 - round(10 * settle)
    for step in range(10):
        assert all(weight_OI.all() for weight_OI in run.weights().values()) == (step < projection)
        shown = run.shown()
        run.step()
        if step + 1 == projection:
            masks = {name: weight_OI == 0 for name, weight_OI in run.weights().items()}
            before = run.weights()
            moments = {name: run.optimizer.state[run.model.get_parameter(name)]["exp_avg_sq"] for name in before}
        if step + 1 > projection:
            assert all(torch.equal(weight_OI == 0, masks[name]) for name, weight_OI in run.weights().items())
    assert all(shown[name].count_nonzero() == (~masks[name]).sum() for name in masks)
    assert moments
    after = run.weights()
    if settle:
        assert all(not torch.equal(after[name], before[name]) for name in after), "what is left trains on"
    trained = run.procedure.finished()
    for layer in run.architecture.layers:
        merged_OI = trained.merged(layer.weight, torch.zeros(layer.shape))
        gone_OI = merged_OI == 0
        assert torch.equal(merged_OI, run.shown()[layer.weight])
        if kept_of is None:
            assert int(gone_OI.sum()) == round(layer.parameters * sparsity)
        else:
            assert (gone_OI.view(-1, kept_of[1]).sum(dim=1) == kept_of[1] - kept_of[0]).all()


def test_what_is_measured_is_cut_and_leaves_no_trace() -> None:
    run = Driven.by("elsa", 0.8, **RUN)
    run.step()
    before = {name: tensor.clone() for name, tensor in run.procedure.state.items()}
    weights = run.weights()
    shown = run.shown()
    assert all(int((weight_OI == 0).sum()) == round(weight_OI.numel() * 0.8) for weight_OI in shown.values())
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.procedure.state.items())
    assert all(torch.equal(weight_OI, weights[name]) for name, weight_OI in run.weights().items())


def test_where_no_loss_holds_them_weights_meet_their_sparse_copy() -> None:
    run = Driven.by("elsa", 0.8, **(RUN | {"steps": 99, "interval": 25, "learning_rate": 0.005}))
    begin = run.procedure.figures()["distance"]
    for step in range(24):
        for parameter in run.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        run.procedure.before_update(step)
        run.optimizer.step()
        run.procedure.after_update(step, run.optimizer)
    assert run.procedure.figures()["distance"] < begin / 4


def test_weights_that_never_had_a_gradient_go_by_size() -> None:
    run = Driven.by("elsa", 0.5, **RUN)
    parameter = run.model.get_parameter(UP)
    run.optimizer.state[parameter] = {"exp_avg_sq": torch.zeros_like(parameter)}
    shown = run.shown()[UP]
    assert torch.equal(shown != 0, kept(run.weights()[UP].square(), 16 * 24 // 2))


def test_nearness_may_be_of_size_alone() -> None:
    run = Driven.by("elsa", 0.5, **RUN, nearness="size")
    for _ in range(2):
        run.step()
    assert torch.equal(run.shown()[UP] != 0, kept(run.weights()[UP].square(), 16 * 24 // 2))
    curved = Driven.by("elsa", 0.5, **RUN)
    for _ in range(2):
        curved.step()
    assert not torch.equal(curved.shown()[UP] != 0, kept(curved.weights()[UP].square(), 16 * 24 // 2))
