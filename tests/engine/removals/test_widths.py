"""Widths of every block: within the bounds of the spec, whatever the scores, sizes and multiples."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.small_models import spec_of
from workers.engine.architectures.architecture import Family, LinearFacts, Member
from workers.engine.contracts.facts import AllocationFacts, Units
from workers.engine.errors import InvalidSpec
from workers.engine.removals.base import removal_of
from workers.engine.removals.widths import kept_units

HEAD_PARTS, CHANNEL_PARTS = ("self_attn.q_proj", "self_attn.o_proj"), ("mlp.up_proj", "mlp.down_proj")


def model_of(sizes: list[tuple[int, int, int]]) -> tuple[list[LinearFacts], list[Family]]:
    """Blocks of (heads, channels, hidden size); a head has two rows of q and two columns of o, a channel one each."""
    layers: list[LinearFacts] = []
    found: list[Family] = []
    for block, (heads, channels, hidden) in enumerate(sizes):
        for kind, names, units, width in (("head", HEAD_PARTS, heads, 2), ("channel", CHANNEL_PARTS, channels, 1)):
            writer, reader = (f"model.layers.{block}.{name}" for name in names)
            layers += [
                LinearFacts(writer, block, f"{kind}_in", (units * width, hidden)),
                LinearFacts(reader, block, f"{kind}_out", (hidden, units * width)),
            ]
            members = (Member(f"{writer}.weight", 0), Member(f"{reader}.weight", 1))
            found.append(Family(block, kind, units, members, 2 * width * hidden, 0))  # type: ignore[arg-type]
    return layers, found


@st.composite
def cases(draw: Any) -> tuple[list[LinearFacts], list[Family], list[dict[str, list[float]]], Any]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=5))
    score = st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1.0, 1e-30]))
    scores = [{k: draw(st.lists(score, min_size=n, max_size=n)) for k, n in zip(("head", "channel"), size)} for size in sizes]  # fmt: skip  # noqa: B905, E501
    prune = {
        "method": "structured",
        "sparsity": draw(st.floats(0.01, 0.97)),
        "channel_multiple": draw(st.sampled_from([1, 1, 2, 3, 8])),
        "units": draw(st.sampled_from([["head"], ["channel"], ["head", "channel"]])),
        "protect_first": draw(st.integers(0, 1)),
        "compensate": False,
    }
    allocate = draw(
        st.one_of(
            st.just({"method": "uniform"}),
            st.builds(lambda most: {"method": "ranking", "most": most}, st.floats(0.05, 1)),
            st.builds(lambda spread: {"method": "dlp", "spread": spread}, st.floats(0, 0.5)),
        )
    )
    layers, found = model_of(sizes)
    return layers, found, scores, spec_of(
        score={"method": "magnitude"}, prune=prune, allocate=allocate,
        calibrate={"dataset": "a.txt", "samples": 4, "sequence_length": 32},
    )  # fmt: skip


@settings(max_examples=200, deadline=None, derandomize=True)
@given(cases())
def test_widths_are_within_every_bound_or_refused(case: Any) -> None:
    layers, found, scores, spec = case
    params, most = spec.prune, spec.allocate.most_of_units
    metrics = {layer.name: float(sum(scores[layer.block]["channel"])) for layer in layers}
    facts = AllocationFacts(layers, metrics, units=Units(found, scores).of_kinds(params.units))
    least: dict[tuple[int, str], int] = {}
    for family in found:
        stays = max(1, family.units - math.floor(most * family.units + 1e-9))
        if family.kind == "channel":
            stays = math.ceil(stays / params.channel_multiple) * params.channel_multiple
        free = family.kind in params.units and family.block >= params.protect_first
        least[family.block, family.kind] = stays if free else family.units
    total = sum(layer.parameters for layer in layers)
    room = sum(max(0, f.units - least[f.block, f.kind]) * f.unit_parameters for f in found)
    try:
        kept = kept_units(layers, found, removal_of(spec).spread(spec, facts, params.sparsity), params, spec.allocate)
    except InvalidSpec as refused:
        error = refused
    else:
        error = None
    if error is not None:
        assert error.hint
        if error.field in ("/allocate/most", "/prune/units") and params.channel_multiple == 1:
            # What whole units leave of a budget may be what does not fit.
            largest = max(f.unit_parameters for f in found)
            assert params.sparsity * total > room - largest, "the model could have lost as much"
        return
    gone = sum((f.units - kept[f.block, f.kind]) * f.unit_parameters for f in found)
    step = max(f.unit_parameters for f in found) * params.channel_multiple
    for family in found:
        stays = kept[family.block, family.kind]
        assert stays == family.units or least[family.block, family.kind] <= stays < family.units
        if family.kind == "channel" and "channel" in params.units:
            lost = any(kept[f.block, f.kind] < f.units for f in found if f.block == family.block)
            assert stays % params.channel_multiple == 0 or not lost
    # Every block is rounded to half a step of its channels, or half a head where no channel makes up for it.
    assert abs(gone - params.sparsity * total) <= 0.51 * step * len(layers) / 4 + 0.51 * step


def test_what_a_block_has_not_goes_from_the_others() -> None:
    """Blocks of 2 heads and 10 channels, a head as large as two channels: 14 parts of two parameters each. The first is
    asked for 12 and may lose one head and five channels, 7; the last is protected, the others have 6 and 7 to lose."""
    layers, found = model_of([(2, 10, 1)] * 4)
    spec = spec_of(
        score={"method": "magnitude"},
        prune={"method": "structured", "sparsity": 0.5, "compensate": False, "protect_last": 1},
        allocate={"method": "ranking", "most": 0.5},
        calibrate=None,
    )
    asked = {0: 12 / 14, 1: 1 / 14, 2: 0.0, 3: 0.0}
    kept = kept_units(layers, found, {layer.name: asked[layer.block] for layer in layers}, spec.prune, spec.allocate)  # type: ignore[arg-type]
    gone = {block: 2 * (2 - kept[block, "head"]) + 10 - kept[block, "channel"] for block in range(4)}
    assert gone == {0: 7, 1: 3, 2: 3, 3: 0}
    assert (kept[0, "head"], kept[0, "channel"]) == (1, 5)
    asked[1] = 13 / 14
    with pytest.raises(InvalidSpec, match=r"3 blocks cannot lose 59\.5% of their parameters .* only 50\.0%") as error:
        kept_units(layers, found, {layer.name: asked[layer.block] for layer in layers}, spec.prune, spec.allocate)  # type: ignore[arg-type]
    assert error.value.field == "/allocate/most"


def test_no_multiple_between_what_there_is_and_what_may_go() -> None:
    layers, found = model_of([(2, 10, 1)])
    spec = spec_of(
        score={"method": "magnitude"},
        prune={"method": "structured", "sparsity": 0.2, "channel_multiple": 8, "compensate": False},
        allocate={"method": "ranking", "most": 0.1},
        calibrate=None,
    )
    with pytest.raises(InvalidSpec, match="10 channels, of which at least 9 must: no multiple of 8 can stay") as error:
        kept_units(layers, found, {layer.name: 0.2 for layer in layers}, spec.prune, spec.allocate)  # type: ignore[arg-type]
    assert error.value.field == "/prune/channel_multiple"


def with_experts(heads: int, blocks: int, first_dense: bool) -> tuple[list[LinearFacts], list[Family]]:
    """Blocks of attention and experts, which are no units; the first perhaps with an MLP in their place."""
    layers, found = model_of([(heads, 12, 8)] * blocks)
    has_mlp = {0} if first_dense else set()
    found = [family for family in found if family.kind == "head" or family.block in has_mlp]
    layers = [layer for layer in layers if "mlp" not in layer.name or layer.block in has_mlp]
    for block in set(range(blocks)) - has_mlp:
        layers.append(LinearFacts(f"model.layers.{block}.mlp.experts.0.down_proj", block, "expert_0", (8, 40)))
    return layers, found


@pytest.mark.parametrize("first_dense", [False, True])
def test_blocks_that_differ_lose_as_many_heads_each(first_dense: bool) -> None:
    layers, found = with_experts(8, 3, first_dense)
    total, heads = sum(layer.parameters for layer in layers), sum(f.units * f.unit_parameters for f in found[:1]) * 3
    for gone in range(8):
        sparsity = gone / 8 * heads / total
        spec = spec_of(
            score={"method": "magnitude"},
            prune={"method": "structured", "sparsity": sparsity, "units": ["head"], "compensate": False},
        )
        even = dict.fromkeys((layer.name for layer in layers), sparsity)
        widths = kept_units(layers, found, even, spec.prune, spec.allocate)
        assert {units for (_, kind), units in widths.items() if kind == "head"} == {8 - gone}
        assert {units for (_, kind), units in widths.items() if kind == "channel"} == ({12} if first_dense else set())


def test_blocks_without_channels_that_must_lose_more_than_their_heads_are_refused() -> None:
    layers, found = with_experts(8, 3, first_dense=True)
    prune = {"method": "structured", "sparsity": 0.5, "units": ["head"], "compensate": False}
    spec = spec_of(score={"method": "magnitude"}, prune=prune)
    with pytest.raises(InvalidSpec, match=r"cannot lose 50.0% of their parameters in heads, only"):
        kept_units(layers, found, dict.fromkeys((x.name for x in layers), 0.5), spec.prune, spec.allocate)
