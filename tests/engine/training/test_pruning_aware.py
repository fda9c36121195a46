"""Training in which groups of weights go, step by step, beside autograd and least squares by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig

from tests.helpers.in_memory import GPT2, LLAMA, ids_of, in_memory
from workers.engine.architectures.coupled import hidden_families
from workers.engine.contracts.training import Target
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.methods.train.efficient_llm import EfficientLLMParams, prepare
from workers.engine.model.loss import next_token_loss
from workers.engine.training.pruning_aware import PruningAware, Removing

CONFIGS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["grouped queries", "fused and transposed"])


def removing(**changes: Any) -> Removing:
    found: dict[str, Any] = {
        "begins": 2, "ends": 6, "every": 1, "course": "cubic", "saliency": "second_moment", "decay": 0.9, "refresh": 2,
        "dampening": None, "recent": 1, "rests": False,
    }  # fmt: skip
    return Removing(**found | changes)


class Run:
    """A training of a small model, driven by hand."""

    def __init__(
        self, config: PretrainedConfig = LLAMA, share: float = 0.4, going: Any = None, least: Any = None, **changes: Any
    ) -> None:
        self.found = in_memory(config)
        self.target = Target(share, self.found.families, going, least or {})
        self.procedure = PruningAware(self.found.model, self.found.architecture, self.target, removing(**changes))
        self.optimizer = self.procedure.optimizer(torch.optim.AdamW, 1e-2, 0.1)

    def loss(self, step: int) -> Tensor:
        ids_NT = ids_of(self.found, windows=8, seed=100 + step)
        return next_token_loss(self.found.model(input_ids=ids_NT, use_cache=False).logits[:, :-1], ids_NT[:, 1:])

    def step(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 1e-2
        self.optimizer.zero_grad()
        self.procedure.begin(step)
        self.loss(step).backward()
        self.procedure.before_update(step)
        self.optimizer.step()
        self.procedure.after_update(step, self.optimizer)

    def to(self, steps: int, first: int = 0) -> Run:
        for step in range(first, steps):
            self.step(step)
        return self

    def parameters(self) -> list[tuple[str, Any]]:
        return [*self.found.model.named_parameters()]

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.parameters()}

    def gone(self) -> dict[tuple[int, str], list[int]]:
        scores = self.procedure.finished().scores
        assert scores is not None
        return {
            (f.block, f.kind): [u for u, score in enumerate(scores[f.block][f.kind]) if score < 0]
            for f in self.found.families
        }

    def parameters_gone(self) -> int:
        return round(self.procedure.figures()["share gone"] * self.found.architecture.prunable_parameters)


@pytest.mark.parametrize(
    "given",
    [
        {"steps": 2, "begin": 0.8, "end": 0.9},
        {"steps": 6, "begin": 0.95, "end": 1.0},
        {"steps": 10, "begin": 0.97, "end": 1.0},
        {"steps": 2, "begin": 0.0},
        {"steps": 1000, "pipeline": "sequential"},
    ],
    ids=["two steps", "rounded up to the last", "the same of ten", "at once", "of a thousand"],
)
def test_all_groups_go_however_late_they_begin(given: dict[str, Any]) -> None:
    found, params = in_memory(LLAMA), EfficientLLMParams(dataset="text.txt", **given)
    procedure: Any = prepare(found.model, found.architecture, Target(0.4, found.families), params)
    removing = procedure._removing
    assert 1 <= removing.begins < removing.ends <= params.steps
    assert removing.now(removing.ends - 1)
    assert removing.share(removing.ends - 1) == 1


@pytest.mark.parametrize(("begins", "ends", "every"), [(1, 2, 1), (2, 9, 3), (1, 9, 50), (4, 8, 2)])
def test_groups_go_at_every_interval_and_at_the_end(begins: int, ends: int, every: int) -> None:
    found = removing(begins=begins, ends=ends, every=every, dampening=0.1, recent=2)
    going = [step for step in range(12) if found.now(step)]
    assert going == [done - 1 for done in range(begins + 1, ends + 1) if (done - begins) % every == 0 or done == ends]
    assert [step for step in range(12) if found.records(step)] == sorted({s for g in going for s in (g - 1, g)})
    assert removing(dampening=0.1, recent=10**12).records(0), "as soon as all of it"
    assert not removing(dampening=0.1, recent=10**12).records(6), "nothing goes any more"


@CONFIGS
def test_groups_cover_every_prunable_parameter_once(config: PretrainedConfig) -> None:
    run = Run(config)
    slices, parameters = run.procedure._slices, dict(run.found.model.named_parameters())
    owned = {id(p): torch.zeros_like(p) for p in parameters.values()}
    for family in run.found.families:
        for unit in range(family.units):
            for member in family.members:
                whole = torch.ones_like(slices.parameter(member))
                slices.clear(family, [unit], whole, member)
                owned[id(slices.parameter(member))] += 1 - whole
    assert {value for count in owned.values() for value in count.unique().tolist()} == {0, 1}
    covered = sum(int(owned[id(p)].sum()) for name, p in parameters.items() if name.endswith("weight"))
    assert covered == run.found.architecture.prunable_parameters


@CONFIGS
@pytest.mark.parametrize("saliency", ["squared_gradient", "taylor", "second_moment"])
def test_the_saliency_is_what_autograd_gives(config: PretrainedConfig, saliency: str) -> None:
    run = Run(config, saliency=saliency, refresh=1)
    run.procedure.begin(0)
    run.loss(0).backward()
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in run.parameters()}
    weights = {name: p.detach().clone() for name, p in run.parameters()}
    run.procedure.before_update(0)
    run.optimizer.step()
    if saliency == "second_moment":  # taken after the update, when AdamW's moment without bias is the square
        weights = {name: p.detach().clone() for name, p in run.parameters()}
    run.procedure.after_update(0, run.optimizer)
    products = {name: weights[name].double() * gradients[name] for name in weights}
    for name, p in run.parameters():  # read as a model's weights
        p.data = products[name]
    for family in run.found.families:
        by_unit = [
            run.found.read(member.tensor).movedim(member.axis, 0).reshape(family.units, -1) for member in family.members
        ]
        all_UW = torch.cat(by_unit, dim=1)
        expected_U = all_UW.sum(dim=1).abs() if saliency == "taylor" else all_UW.square().sum(dim=1) / 2
        found_U = run.procedure._saliency[family.block, family.kind] / run.procedure._measured
        assert torch.allclose(found_U, expected_U, rtol=1e-4, atol=1e-12), family


def test_taylor_is_the_derivative_of_the_loss_by_a_factor_on_the_group() -> None:
    """Sum of w g over the weights that read a unit, found as well with the unit's mask as a variable."""
    run = Run(saliency="taylor")
    family = next(family for family in run.found.families if family.kind == "channel")
    mask_U = torch.ones(family.units, requires_grad=True)
    kept, run.procedure._masks.values[0, "channel"] = run.procedure._masks.values[0, "channel"], mask_U
    run.loss(0).backward()
    run.procedure._masks.values[0, "channel"] = kept
    gradient_IO = run.found.model.model.layers[0].mlp.down_proj.weight.grad.T
    assert torch.allclose((run.found.reader(family).T * gradient_IO).sum(dim=1), mask_U.grad, atol=1e-6)


def test_the_free_estimate_ranks_as_the_accumulated_squares_do() -> None:
    ranks = []
    for saliency in ("second_moment", "squared_gradient"):
        run = Run(saliency=saliency, begins=20, ends=40, refresh=1).to(12)
        ranks.append(torch.cat([*run.procedure._saliency.values()]).argsort().argsort().double())
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.8


@CONFIGS
def test_a_group_of_zeros_goes_first(config: PretrainedConfig) -> None:
    run = Run(config, share=0.4)
    channels = [family for family in run.found.families if family.kind == "channel"]
    for family in channels:
        for member in family.members:
            run.procedure._slices.clear(family, [3], run.procedure._slices.parameter(member).data, member)
    run.to(6)
    orders = [run.procedure._order[family.block, "channel"] for family in channels]
    assert {int(order_U[3]) for order_U in orders} == {1, 2}
    assert len({int(order_U.max()) for order_U in orders}) == 2


@CONFIGS
@pytest.mark.parametrize("dampening", [None, 0.01], ids=["saliency alone", "with least squares"])
def test_the_size_falls_to_the_target_and_what_went_stays_zero(
    config: PretrainedConfig, dampening: float | None
) -> None:
    run, sizes = Run(config, share=0.43, dampening=dampening, course="linear"), []
    for step in range(9):
        run.step(step)
        sizes.append(run.parameters_gone())
    wanted = 0.43 * run.found.architecture.prunable_parameters
    smallest = min(family.unit_parameters for family in run.found.families)
    assert sizes == sorted(sizes)
    assert sizes[1] == 0 < sizes[2] < sizes[4] < sizes[5] == sizes[8]
    assert wanted - smallest < sizes[8] <= wanted + 0.5
    gone = run.gone()
    for family in run.found.families:
        units = gone[family.block, family.kind]
        assert len(units) < family.units
        for member in family.members:
            parameter = run.procedure._slices.parameter(member)
            for whole in (
                parameter.data,
                *(run.optimizer.state[parameter][name] for name in ("exp_avg", "exp_avg_sq")),
            ):
                part = run.procedure._slices._places[member.tensor].read(whole)
                by_unit = part.movedim(member.axis, 0).reshape(family.units, -1)
                assert by_unit[units].count_nonzero() == 0
                assert "bias" in member.tensor or (by_unit != 0).any(dim=1).sum() == family.units - len(units)


@CONFIGS
def test_the_masked_model_is_the_one_without_the_groups(config: PretrainedConfig) -> None:
    run = Run(config).to(6)
    ids_NT = ids_of(run.found)
    with run.procedure.evaluating(), torch.no_grad():
        masked = run.found.model(input_ids=ids_NT, use_cache=False).logits
    run.procedure._masks.remove()
    torch.manual_seed(0)
    gone = run.gone()
    for family in run.found.families:
        for member in family.members[:-1]:  # whatever would write them: the reader has zeros
            values = run.found.read(member.tensor).clone()
            by_unit = values.movedim(member.axis, 0).reshape(family.units, -1)
            by_unit[gone[family.block, family.kind]] = 7.0
            run.found.write(
                member.tensor, by_unit.reshape(values.movedim(member.axis, 0).shape).movedim(0, member.axis)
            )
    with torch.no_grad():
        assert torch.allclose(run.found.model(input_ids=ids_NT, use_cache=False).logits, masked, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
def test_hidden_dimensions_go_from_everywhere_and_stay_zero(tied: bool) -> None:
    config = LlamaConfig(**LLAMA.to_diff_dict() | {"tie_word_embeddings": tied})
    found = in_memory(config)
    described = config.to_dict()
    tensors = {name: TensorFacts("F32", tuple(p.shape)) for name, p in found.model.named_parameters()}
    families = (*found.families, *hidden_families(found.architecture, described, tensors))
    going = {(None, "hidden"): 5} | {(f.block, f.kind): 1 for f in found.families}
    procedure = PruningAware(found.model, found.architecture, Target(0.4, families, going), removing(dampening=0.01))
    optimizer = procedure.optimizer(torch.optim.AdamW, 1e-2, 0.1)
    for step in range(8):
        optimizer.zero_grad()
        procedure.begin(step)
        ids_NT = ids_of(found, seed=step)
        loss = next_token_loss(found.model(input_ids=ids_NT, use_cache=False).logits[:, :-1], ids_NT[:, 1:])
        loss.backward()
        procedure.before_update(step)
        optimizer.step()
        procedure.after_update(step, optimizer)
    scores = procedure.finished().scores
    assert scores is not None
    assert scores[0]["hidden"] == scores[1]["hidden"]
    gone = [d for d, score in enumerate(scores[0]["hidden"]) if score < 0]
    assert len(gone) == 5
    assert all(sum(score < 0 for score in block[kind]) == 1 for block in scores for kind in ("head", "channel"))
    left = [d for d in range(config.hidden_size) if d not in gone]
    of_dimensions = 0
    for name, parameter in found.model.named_parameters():
        axis = found.architecture.layout.hidden_axis(name)
        assert axis is not None
        by_dimension = parameter.data.movedim(axis, 0)
        assert by_dimension[gone].count_nonzero() == 0, name
        assert by_dimension[left].reshape(len(left), -1).any(dim=1).all(), name
        of_dimensions += by_dimension[gone].numel()
    row = procedure._families[None, "hidden"]
    assert of_dimensions == sum(procedure._slices.parameter(m).numel() for m in row.members) * 5 // config.hidden_size


def test_as_many_go_of_each_family_as_the_target_says() -> None:
    going = {(0, "head"): 1, (1, "head"): 1, (0, "channel"): 7, (1, "channel"): 9}
    run = Run(going=going).to(7)
    assert {key: len(units) for key, units in run.gone().items()} == going


def test_no_family_loses_more_than_it_may() -> None:
    run = Run(least={(0, "channel"): 19, (1, "head"): 3}).to(7)
    assert len(run.gone()[0, "channel"]) <= 1
    assert run.gone()[1, "head"] == []
    assert run.parameters_gone() > 0.39 * run.found.architecture.prunable_parameters


def test_scores_say_what_went_in_its_order_and_what_stays_by_saliency() -> None:
    run = Run().to(7)
    scores = run.procedure.finished().scores
    assert scores is not None
    orders, values = [], []
    for family in run.found.families:
        orders += run.procedure._order[family.block, family.kind].tolist()
        values += scores[family.block][family.kind]
    went = sorted((order, value) for order, value in zip(orders, values, strict=True) if order)
    assert [order for order, _ in went] == [*range(1, len(went) + 1)]
    assert [value for _, value in went] == [*range(-len(went), 0)]
    assert all(value >= 0 for order, value in zip(orders, values, strict=True) if not order)


@CONFIGS
@pytest.mark.parametrize("kind", ["head", "channel"])
def test_the_reader_is_updated_as_least_squares_would(config: PretrainedConfig, kind: str) -> None:
    run = Run(config, dampening=0.01)
    family = next(family for family in run.found.families if family.kind == kind)
    going, key = [0, 2], (family.block, family.kind)
    before_OI = run.found.reader(family).double()
    inputs = record(run, family)
    run.procedure._recent.record(0)
    run.loss(0)
    run.procedure._remove([(key, unit) for unit in going], run.optimizer)
    after_OI = run.found.reader(family).double()
    stays_I = torch.ones(family.units, dtype=torch.bool).index_fill(0, torch.tensor(going), False)
    stays_I = stays_I.repeat_interleave(before_OI.shape[1] // family.units)
    # Dampening is the same as further tokens, each of one input alone.
    read_NI = torch.cat(inputs).flatten(0, 1).double()
    alone_II = torch.eye(read_NI.shape[1]).double() * (0.01 * read_NI.square().sum() / read_NI.shape[1]).sqrt()
    all_NI = torch.cat([read_NI, alone_II])
    expected_KO = torch.linalg.lstsq(all_NI[:, stays_I], all_NI @ before_OI.T, driver="gelsd").solution
    assert torch.allclose(after_OI[:, stays_I], expected_KO.T, atol=1e-4 * float(before_OI.abs().max()))
    assert (after_OI[:, ~stays_I] == 0).all()
    found, plain = (
        float((read_NI @ (one_OI - before_OI).T).square().sum()) for one_OI in (after_OI, before_OI * stays_I)
    )
    assert found < plain


def record(run: Run, family: Any) -> list[Tensor]:
    """Inputs of the reader of a family."""
    inputs: list[Tensor] = []
    reader = run.found.model.get_submodule(family.reader.tensor.removesuffix(".weight"))
    reader.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    return inputs


def test_a_twin_takes_over_what_a_channel_gave() -> None:
    run = Run(dampening=1e-6)
    mlp = run.found.model.model.layers[0].mlp
    for writer in (mlp.gate_proj, mlp.up_proj):
        writer.weight.data[5] = writer.weight.data[11]
    column_O = mlp.down_proj.weight.data[:, [5, 11]].sum(dim=1)
    run.procedure._recent.record(0)
    with torch.no_grad():
        before = run.loss(0)
        run.procedure._remove([((0, "channel"), 5)], run.optimizer)
        assert torch.allclose(run.loss(0), before, atol=1e-5)
    assert torch.allclose(mlp.down_proj.weight.data[:, 11], column_O, atol=1e-3)


def test_weights_rest_while_groups_go_and_train_afterwards() -> None:
    run = Run(rests=True)
    before = run.weights()
    run.to(6)
    gone = run.gone()
    assert sum(map(len, gone.values()))
    for name, weight in run.weights().items():
        assert torch.equal(weight[weight != 0], before[name][weight != 0]), name
    embedding = run.found.model.model.embed_tokens.weight
    run.step(6)
    assert not torch.equal(embedding, before["model.embed_tokens.weight"])
    assert run.gone() == gone


@pytest.mark.parametrize("dampening", [None, 0.01])
def test_goes_on_from_a_copy_of_its_state_to_the_same_bytes(dampening: float | None) -> None:
    own = {"dampening": dampening, "every": 3, "recent": 2}
    whole, half, rest = Run(**own).to(7), Run(**own).to(4), Run(**own)  # it stops between the inputs of a removal
    for name, parameter in half.procedure.parameters.items():
        rest.procedure.parameters[name].data.copy_(parameter)
    for name, tensor in half.procedure.state.items():
        rest.procedure.state[name].copy_(tensor)
    rest.optimizer.load_state_dict(half.optimizer.state_dict())
    rest.to(7, first=4)
    assert rest.procedure.finished().scores == whole.procedure.finished().scores
    for name, weight in whole.weights().items():
        assert torch.equal(rest.weights()[name], weight), name


@pytest.mark.parametrize("passes", [1, 2], ids=["in its first part", "in its second part"])
def test_inputs_of_a_step_that_fails_and_begins_again_are_counted_once(passes: int) -> None:
    """It has two parts, as where not all windows go through at once."""
    once, twice = Run(dampening=0.01, ends=9), Run(dampening=0.01, ends=9)
    for run, begun in ((once, [2]), (twice, [passes, 2])):
        for step in range(2):
            run.step(step)
        for count in begun:
            run.procedure.begin(2)
            for part in range(count):
                run.loss(10 + part)
        run.procedure._recent.stop()
    for name, count in once.procedure._recent.tokens.items():
        assert count > 0
        assert twice.procedure._recent.tokens[name] == count
        assert torch.equal(twice.procedure._recent.sums[name], once.procedure._recent.sums[name])
    once.procedure.begin(3)
    once.loss(3)
    assert all(once.procedure._recent.tokens[name] > count for name, count in twice.procedure._recent.tokens.items())
