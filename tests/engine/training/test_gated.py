"""Training with gates on a small random model, its hooks called as the loop calls them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.helpers.in_memory import LLAMA, InMemory, ids_of, in_memory, logits, units, write
from workers.engine.contracts.training import Target
from workers.engine.maths import hard_concrete
from workers.engine.model.loss import next_token_loss
from workers.engine.training.gated import Gated, GateSetting
from workers.engine.training.low_rank import low_rank
from workers.engine.training.trainable import unfrozen


@pytest.fixture
def small() -> InMemory:
    return in_memory(LLAMA)


SETTING = GateSetting(gate_rate=0.6, multiplier_rate=0.6, ramp_steps=10, steps=80)
GOING: dict[tuple[int | None, str], int] = {
    **{(block, "head"): 1 for block in range(2)},
    **{(block, "channel"): 9 for block in range(2)},
}
SHARE = 0.4


def gated(small: InMemory, kinds: tuple[str, ...] = ("head", "channel"), **target: Any) -> Gated:
    torch.manual_seed(0)
    families = units(small, *kinds)
    trainable = unfrozen(small.model, small.architecture, lambda _: True)
    return Gated(small.model, small.architecture, Target(SHARE, families, **target), trainable, SETTING)


def trained(small: InMemory, procedure: Gated, steps: int) -> None:
    optimizer, ids_BT = procedure.optimizer(torch.optim.AdamW, 1e-3, 0.1), ids_of(small, 1)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        procedure.begin(step)
        logits_BTV = small.model(input_ids=ids_BT, use_cache=False).logits
        next_token_loss(logits_BTV[:, :-1], ids_BT[:, 1:]).backward()
        procedure.penalty(step).backward()
        optimizer.step()
        procedure.after_update(step, optimizer)


@pytest.mark.parametrize("going", [GOING, {**GOING, (1, "channel"): 17, (0, "head"): 0}, None])
def test_ends_with_exactly_what_was_asked_for_and_weights_that_compute_so(small: InMemory, going: Any) -> None:
    procedure = gated(small, going=going)
    trained(small, procedure, 15)
    found = procedure.finished()
    assert found.scores is not None
    gone = {
        (family.block, family.kind): sum(score < 0 for score in found.scores[family.block][family.kind])
        for family in procedure.target.families
    }
    if going is not None:
        assert gone == going
    else:
        sizes = {(family.block, family.kind): family.unit_parameters for family in procedure.target.families}
        parameters = sum(sizes[row] * count for row, count in gone.items())
        assert abs(parameters - SHARE * small.architecture.prunable_parameters) <= min(sizes.values()) / 2
    with procedure.evaluating():
        expected_BTV = logits(small)
    procedure.gates._noise.clear()
    write(small, found.merged)
    assert (logits(small) - expected_BTV).abs().max() < 1e-4 * expected_BTV.abs().max()


@pytest.mark.parametrize("going", [GOING, None])
def test_gates_come_to_the_target(small: InMemory, going: Any) -> None:
    procedure = gated(small, going=going)
    before = procedure.figures()
    trained(small, procedure, 80)
    for name, gap in procedure.figures().items():
        assert gap < 0.1 < before[name], name


@pytest.mark.parametrize("going", [GOING, None])
def test_looks_close_as_many_as_chance_does_by_now_and_the_last_one_the_target(small: InMemory, going: Any) -> None:
    procedure = gated(small, going=going)

    def shut() -> int:
        with procedure.evaluating():
            logits(small)
            return sum(int((value_N == 0).sum()) for value_N in procedure.gates._values.values())

    assert shut() == 0, "gates begin open"
    for alpha_N in procedure.gates.alphas.values():
        alpha_N.data.fill_(-2 / 3 * math.log(11))  # where each is 0 half of the time
        assert hard_concrete.chance_of_zero(alpha_N).tolist() == pytest.approx([0.5] * len(alpha_N))
    of_all = shut()
    assert of_all == sum(int(closed_N.sum()) for closed_N in procedure.closed().values()), "no more than in the end"
    optimizer = procedure.optimizer(torch.optim.AdamW, 1e-3, 0.0)
    for alpha_N in procedure.gates.alphas.values():
        alpha_N.data.fill_(5.0)
    procedure.after_update(78, optimizer)
    assert shut() == 0
    procedure.after_update(79, optimizer)
    assert shut() == of_all


def test_one_constraint_a_kind_or_one_in_all(small: InMemory) -> None:
    assert set(gated(small, going=GOING).lagrangian.multipliers) == {"head", "channel"}


def test_a_hidden_size_and_layers_may_be_asked_for(small: InMemory) -> None:
    going = {**GOING, (None, "hidden"): 8, (None, "layer"): 1}
    procedure = gated(small, ("head", "channel", "hidden", "layer"), going=going)
    trained(small, procedure, 5)
    scores = procedure.finished().scores
    assert scores is not None
    assert [sum(score < 0 for score in block["hidden"]) for block in scores] == [8, 8]
    assert sum(block["layer"][0] < 0 for block in scores) == 1
    assert set(procedure.figures()) == {"gap of head", "gap of channel", "gap of hidden", "gap of layer"}


def test_too_little_gone_pulls_the_gates_down_and_the_multiplier_with_them(small: InMemory) -> None:
    procedure = gated(small, going=GOING)
    pair = procedure.lagrangian.multipliers["head"]
    optimizer = procedure.optimizer(torch.optim.AdamW, 1e-3, 0.0)
    for step in range(2):
        optimizer.zero_grad()
        procedure.penalty(10).backward()
        assert pair.grad is not None
        assert pair.grad[0] < 0 < pair.grad[1], "ascent: the linear one falls, the square's grows"
        alpha_N = procedure.gates.alphas[0, "head"]
        assert alpha_N.grad is not None
        # The first step has multipliers of zero: no pressure yet.
        assert (alpha_N.grad > 0).all() if step else (alpha_N.grad == 0).all()
        optimizer.step()
    assert pair[0] < 0 < pair[1]


def test_the_target_rises_and_weights_alone_are_clipped_and_decay(small: InMemory) -> None:
    procedure = gated(small, going=GOING)
    row = (0, "channel")
    started = procedure.lagrangian.gaps(0.0)["channel"][0].item()
    assert procedure.lagrangian.gaps(0.5)["channel"][0].item() == pytest.approx(started - 0.5 * 9 / 20)
    gates = {id(alpha_N) for alpha_N in procedure.gates.alphas.values()}
    assert not gates & {id(parameter) for parameter in procedure.clipped()}
    weights, of_gates, of_multipliers = procedure.optimizer(torch.optim.AdamW, 1e-3, 0.1).param_groups
    assert (weights["weight_decay"], of_gates["weight_decay"], of_multipliers["weight_decay"]) == (0.1, 0, 0)
    assert any(parameter is procedure.gates.alphas[row] for parameter in of_gates["params"])


def test_low_rank_updates_beside_gates_leave_the_frozen_weights_and_merge(small: InMemory) -> None:
    torch.manual_seed(0)
    before = {name: small.read(name).clone() for name in (family.reader.tensor for family in small.families)}
    trainable = low_rank(
        small.model,
        small.architecture,
        lambda path: path.endswith(("q_proj", "v_proj")),
        rank=2,
        alpha=2.0,
        dropout=0.0,
    )
    procedure = Gated(
        small.model, small.architecture, Target(SHARE, units(small, "head", "channel")), trainable, SETTING
    )
    trained(small, procedure, 10)
    assert {name.rpartition(".")[2] for name in trainable.parameters} == {"lora_A", "lora_B"}
    assert all(torch.equal(small.read(name), tensor) for name, tensor in before.items())
    fresh, merge = in_memory(LLAMA), procedure.finished().merged
    with procedure.evaluating():
        expected_BTV = logits(small)
    write(fresh, merge)
    assert (logits(fresh) - expected_BTV).abs().max() < 1e-5 * expected_BTV.abs().max()
