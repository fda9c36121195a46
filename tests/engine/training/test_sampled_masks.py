"""Masks learnt from forward passes alone, driven by hand on a small model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PretrainedConfig

from tests.helpers.in_memory import GPT2, LLAMA, ids_of, in_memory
from workers.engine.architectures.coupled import block_families
from workers.engine.contracts.training import Target
from workers.engine.model.loss import next_token_loss
from workers.engine.training.sampled_masks import SampledMasks, Sampling

CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["grouped queries", "fused and transposed"])
KEYS = [(block, kind) for block in range(2) for kind in ("head", "channel")]


class Run:
    def __init__(
        self, config: PretrainedConfig = LLAMA, share: float = 0.4, going: Any = None, least: Any = None, **own: Any
    ) -> None:
        self.found = in_memory(config)
        self.target = Target(share, self.found.families, going, least or {})
        settings: dict[str, Any] = {
            "samples": 2, "window": 5, "exact": False, "from_weights": False, "head_rate": None,
        }  # fmt: skip
        sampling = Sampling(**settings | own)
        self.procedure = SampledMasks(self.found.model, self.found.architecture, self.target, sampling)
        self.optimizer = self.procedure.optimizer(torch.optim.AdamW, 0.05, 0.0)

    def masks(self) -> dict[tuple[int, str], Tensor]:
        return self.procedure._masks.values

    def loss(self) -> Tensor:
        ids_NT = ids_of(self.found)
        return next_token_loss(self.found.model(input_ids=ids_NT, use_cache=False).logits[:, :-1], ids_NT[:, 1:])

    def step(self, step: int, loss: Callable[[], Tensor] | None = None) -> Tensor:
        torch.manual_seed(step)
        self.optimizer.zero_grad()
        self.procedure.begin(step)
        value = self.procedure.estimate(loss or self.loss)
        self.procedure.before_update(step)
        self.optimizer.step()
        self.procedure.after_update(step, self.optimizer)
        return value

    def to(self, steps: int, loss: Callable[[], Tensor] | None = None, first: int = 0) -> Run:
        for step in range(first, steps):
            self.step(step, loss)
        return self

    def gone(self) -> dict[tuple[int, str], list[int]]:
        scores = self.procedure.finished().scores
        assert scores is not None
        return {(b, kind): [u for u, score in enumerate(scores[b][kind]) if score < 0] for b, kind in KEYS}

    def sums(self) -> dict[str, float]:
        return {kind: float(stays_N.sum()) for kind, stays_N in self.procedure.parameters.items()}


@CONFIGS
def test_nothing_requires_a_gradient_and_no_weight_moves(config: PretrainedConfig) -> None:
    run = Run(config)
    before = {name: p.detach().clone() for name, p in run.found.model.named_parameters()}
    run.to(3)
    parameters = dict(run.found.model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in parameters.values())
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert not run.loss().requires_grad
    merged, stored = run.procedure.finished().merged, torch.ones(2)
    assert merged("anything", stored) is stored
    assert all((mask_U == 1).all() for mask_U in run.masks().values())


def test_a_step_is_that_of_the_papers_code() -> None:
    run, own = Run(), Run()
    losses = iter([3.0, 1.0, 2.0, 2.5])
    seen: list[dict[tuple[int, str], Tensor]] = []

    def loss() -> Tensor:
        seen.append({key: mask_U.clone() for key, mask_U in run.masks().items()})
        return torch.tensor(next(losses))

    assert float(run.step(0, loss)) == 2.0
    assert float(run.step(1, loss)) == 2.25
    baseline = 0.0
    for step in range(2):
        mean = [2.0, 2.25][step]
        baseline = mean if step == 0 else 0.8 * baseline + 0.2 * mean
        for kind, stays_N in own.procedure.parameters.items():
            moved_N = torch.zeros_like(stays_N)
            for sample, value in enumerate([[3.0, 1.0], [2.0, 2.5]][step]):
                mask_N = torch.cat([seen[2 * step + sample][block, kind] for block in range(2)])
                moved_N += (value - baseline) * (mask_N - stays_N) / (stays_N * (1 - stays_N)).sqrt()
            stays_N.data -= 0.05 * moved_N
        own.procedure.after_update(step, own.optimizer)
    for kind, stays_N in run.procedure.parameters.items():
        assert torch.allclose(stays_N, own.procedure.parameters[kind], atol=1e-5)


@pytest.mark.parametrize("exact", [False, True], ids=["paper", "exact"])
def test_the_unit_that_matters_is_found_and_the_budget_holds(exact: bool) -> None:
    run = Run(exact=exact)
    budgets = run.sums()
    run.to(150, lambda: 1 - run.masks()[1, "channel"][7] + 0.1 * run.masks()[0, "head"][1])
    channels_N, heads_N = run.procedure.parameters["channel"], run.procedure.parameters["head"]
    assert channels_N[27] > 0.95
    assert heads_N.argmin() == 1
    assert all(total <= budgets[kind] + 1e-2 for kind, total in run.sums().items())
    gone = run.gone()
    assert 7 not in gone[1, "channel"]
    assert 1 in gone[0, "head"]


@CONFIGS
@pytest.mark.parametrize("share", [0.25, 0.4, 0.55])
def test_what_goes_amounts_to_the_target_and_leaves_one_of_each(config: PretrainedConfig, share: float) -> None:
    run = Run(config, share)
    for stays_N in run.procedure.parameters.values():  # most undecided units are alike
        stays_N.data.bernoulli_(1 - share)
    gone, sizes = run.gone(), {(f.block, f.kind): f.unit_parameters for f in run.found.families}
    total = sum(len(units) * sizes[key] for key, units in gone.items())
    assert abs(total - share * run.found.architecture.prunable_parameters) <= min(sizes.values()) / 2 + 0.5
    assert all(len(gone[f.block, f.kind]) < f.units for f in run.found.families)
    heads = sum(f.units for f in run.found.families if f.kind == "head")
    assert abs(sum(len(gone[block, "head"]) for block in range(2)) - share * heads) <= 0.51


def test_as_many_go_of_each_family_as_the_target_says() -> None:
    going = {(0, "head"): 1, (1, "head"): 2, (0, "channel"): 7, (1, "channel"): 0}
    run = Run(going=going).to(20)
    assert {key: len(units) for key, units in run.gone().items()} == going
    for block, stays in ((0, 13), (1, 20)):
        part_U = run.procedure.parameters["channel"].data.split(20)[block]
        assert float(part_U.sum()) <= stays + 1e-2


def test_layers_go_in_all_blocks_together() -> None:
    found = in_memory(LLAMA)
    families = block_families(found.architecture)
    target = Target(0.5, families, {(None, "layer"): 1})
    sampling = Sampling(samples=2, window=5, exact=False, from_weights=True, head_rate=None)
    procedure = SampledMasks(found.model, found.architecture, target, sampling)
    optimizer = procedure.optimizer(torch.optim.AdamW, 0.05, 0.0)
    for step in range(60):
        procedure.begin(step)
        procedure.estimate(lambda: 3 - procedure._masks.values[1, "layer"].sum())
        optimizer.step()
        procedure.after_update(step, optimizer)
    assert float(procedure.parameters["layer"].sum()) <= 1 + 1e-2
    scores = procedure.finished().scores
    assert scores is not None
    assert [block["layer"][0] < 0 for block in scores] == [True, False]


def test_no_family_loses_more_than_it_may() -> None:
    run = Run(least={(0, "channel"): 19, (1, "head"): 3})
    gone = run.gone()
    assert len(gone[0, "channel"]) <= 1
    assert gone[1, "head"] == []
    assert len(gone[0, "head"]) == 2


@CONFIGS
def test_evaluation_is_on_the_model_without_the_units_that_go(config: PretrainedConfig) -> None:
    run = Run(config).to(4)
    with run.procedure.evaluating():
        masked = run.loss()
    for family in run.found.families:
        weight_OI = run.found.reader(family).clone()
        width = weight_OI.shape[1] // family.units
        for unit in run.gone()[family.block, family.kind]:
            weight_OI[:, unit * width : (unit + 1) * width] = 0
        run.found.write(family.reader.tensor, weight_OI)
    assert torch.allclose(run.loss(), masked, atol=1e-6)


def test_the_same_seed_gives_the_same_and_a_copy_of_the_state_goes_on_alike() -> None:
    whole, again, rest = Run(from_weights=True).to(6), Run(from_weights=True).to(6), Run(from_weights=True)
    half = Run(from_weights=True).to(3)
    for name, stays_N in half.procedure.parameters.items():
        rest.procedure.parameters[name].data.copy_(stays_N)
    for name, tensor in half.procedure.state.items():
        rest.procedure.state[name].copy_(tensor)
    rest.to(6, first=3)
    for name, stays_N in whole.procedure.parameters.items():
        assert torch.equal(stays_N, again.procedure.parameters[name])
        assert torch.equal(stays_N, rest.procedure.parameters[name])
    assert whole.procedure.finished().scores == rest.procedure.finished().scores


@CONFIGS
def test_a_start_from_weights_prefers_units_that_are_read_more(config: PretrainedConfig) -> None:
    run = Run(config, from_weights=True)
    family = run.found.families[-1]
    weight_OI = run.found.reader(family).clone()
    weight_OI[:, 3] *= 50
    weight_OI[:, 5] = 0
    run.found.write(family.reader.tensor, weight_OI)
    budgets = run.sums()
    run.procedure.begin(0)
    run.procedure.estimate(run.loss)
    last_U = run.procedure.parameters["channel"].data.split(family.units)[family.block]
    assert (int(last_U.argmax()), int(last_U.argmin())) == (3, 5)
    assert run.sums()["channel"] == pytest.approx(budgets["channel"], rel=0.02)


def test_losses_that_are_not_finite_are_left_out() -> None:
    run = Run(samples=3)
    values = iter([torch.nan, 2.0, 4.0])
    assert float(run.step(0, lambda: torch.tensor(next(values)))) == 3.0
    assert float(run.procedure.state["baseline"]) == 3.0
    before = {kind: stays_N.clone() for kind, stays_N in run.procedure.parameters.items()}
    assert run.step(1, lambda: torch.tensor(torch.nan)).isnan(), "the loop stops at this"
    assert all(torch.equal(stays_N, before[kind]) for kind, stays_N in run.procedure.parameters.items())


def test_heads_have_a_rate_of_their_own() -> None:
    run = Run(head_rate=0.5)
    assert [group["lr"] for group in run.optimizer.param_groups] == [0.5, 0.05]
