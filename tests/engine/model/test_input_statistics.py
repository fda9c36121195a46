"""Statistics of a block's inputs in the walk, against the same from hooks on a whole model.

N = windows, T = tokens of a window, I = inputs of a linear layer; X and Z have one row per token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.layer_inputs import inputs_of
from tests.helpers.on_ranks import on_ranks
from tests.helpers.small_models import Scratch, entering, load, spec_of, text_of
from workers.engine.architectures.layouts.llama import LAYOUT
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import OF_INPUTS, OF_NORMS, Stat
from workers.engine.model.input_statistics import InputSums, collect, staged
from workers.engine.model.loaded import tensors_of
from workers.engine.model.walk import At
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import Sources

STREAMS = {layer.name: layer.stream for layer in LAYOUT.layers}

EVERYTHING = OF_INPUTS | Stat.GRAM | Stat.DENSE_INPUTS
TOKENS = 8 * 32


@dataclass
class Entered:
    """`tiny` at its first block, in batches of three windows."""

    at: At
    windows_NT: Tensor


@pytest.fixture
def entered(tiny: Path, sources: Sources, scratch: Scratch) -> Iterator[Entered]:
    spec = spec_of()
    model = replace(load(spec, sources), batch_tokens=3 * 32)
    text = text_of(spec, model, sources)
    way, inputs = entering(model, text, scratch)
    with way, way.at(0, inputs, tensors_of(model, "model.layers.0")) as at:
        yield Entered(at, text.windows_NT)


def assert_close(found: Tensor | None, expected: Tensor) -> None:
    assert found is not None
    assert found.dtype == torch.float32
    # Sums of 256 float32 products: 1e-5 of the largest entry is far above their rounding, far below any mistake.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_collected_statistics_are_their_definitions(entered: Entered, tiny: Path) -> None:
    found = collect(entered.at, EVERYTHING)
    dense = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    for stream, x in inputs_of(dense, entered.windows_NT, 0).items():
        stats = found[stream]
        assert (stats.tokens, stats.window_tokens) == (TOKENS, 32)
        assert_close(stats.gram_II, x.T @ x / TOKENS)
        assert_close(stats.input_sq_mean_I, x.square().mean(dim=0))
        assert_close(stats.input_mean_I, x.mean(dim=0))
        assert_close(stats.input_variance_I, x.var(dim=0, correction=0))
        assert_close(stats.input_abs_mean_I, x.abs().mean(dim=0))
        assert_close(stats.input_fourth_root_I, x.pow(4).mean(dim=0).pow(0.25))
        assert_close(stats.input_abs_max_I, x.abs().amax(dim=0))
        assert stats.cross_gram_II is None, "the inputs are those of the dense block"
        assert stats.dense_gram_II is None
    assert set(found) == set(STREAMS.values())


@pytest.mark.parametrize("needs", [Stat.INPUT_SQ_MEAN, Stat.GRAM, Stat.INPUT_SQ_MEAN | Stat.INPUT_MOMENTS])
def test_only_what_is_needed_is_kept(needs: Stat, entered: Entered) -> None:
    found = collect(entered.at, needs)
    full = collect(entered.at, EVERYTHING)
    for stream, stats in found.items():
        assert (stats.gram_II is not None) == (Stat.GRAM in needs)
        assert (stats.input_mean_I is not None) == (Stat.INPUT_MOMENTS in needs)
        assert (stats.input_abs_mean_I, stats.input_fourth_root_I, stats.input_abs_max_I) == (None, None, None)
        # By itself, or the diagonal of the Gram matrix.
        assert stats.input_sq_mean_I is not None
        torch.testing.assert_close(stats.input_sq_mean_I, full[stream].input_sq_mean_I)


def test_outputs_are_written_on_the_way_if_wanted(entered: Entered, scratch: Scratch, tiny: Path) -> None:
    alone = collect(entered.at, Stat.GRAM)
    together = collect(entered.at, Stat.GRAM, advance=True)
    assert all(torch.equal(alone[stream].gram_II, together[stream].gram_II) for stream in alone)  # type: ignore[arg-type]
    dense = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.no_grad():
        states = dense(entered.windows_NT, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(entered.at.outputs.read(slice(0, 8)), states[1])


@pytest.mark.parametrize("with_twin", [True, False])
def test_staged_statistics_are_those_of_a_pruned_and_a_dense_model(
    with_twin: bool, entered: Entered, scratch: Scratch, tiny: Path
) -> None:
    dense = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    pruned = copy.deepcopy(dense)
    for name in STREAMS:
        pruned.model.layers[0].get_submodule(name).weight.data[:, ::2] = 0
    x_of, z_of = (inputs_of(model, entered.windows_NT, 0) for model in (pruned, dense))

    twin = copy.deepcopy(entered.at.module) if with_twin else None
    needs = EVERYTHING if with_twin else Stat.GRAM | Stat.INPUT_MOMENTS
    order = []
    for stream, stats in staged(entered.at, twin, needs):
        order.append(stream)
        x, z = x_of[stream], z_of[stream]
        assert stats.tokens == TOKENS
        assert_close(stats.gram_II, x.T @ x / TOKENS)
        assert_close(stats.input_mean_I, x.mean(dim=0))
        if with_twin and stream != "attention_input":
            assert_close(stats.dense_gram_II, z.T @ z / TOKENS)
            assert_close(stats.cross_gram_II, z.T @ x / TOKENS)
            assert stats.cross_gram_II is not None
            assert not torch.allclose(stats.cross_gram_II, stats.cross_gram_II.T, rtol=1e-3), "rows are the dense ones"
        else:
            assert stats.dense_gram_II is None
            assert stats.cross_gram_II is None
        for name in (name for name, reads in STREAMS.items() if reads == stream):
            entered.at.module.get_submodule(name).weight.data[:, ::2] = 0
    assert order == list(dict.fromkeys(STREAMS.values()))

    with torch.no_grad():
        states = pruned(entered.windows_NT, output_hidden_states=True, use_cache=False).hidden_states
    torch.testing.assert_close(entered.at.outputs.read(slice(0, 8)), states[1])


def test_staged_leaves_no_hooks_and_no_passes_behind(entered: Entered) -> None:
    """However it ends: with no outputs wanted, or given up in the middle."""
    before = collect(entered.at, Stat.GRAM)
    for _ in staged(replace(entered.at, wanted=False), None, Stat.GRAM):
        pass
    given_up = staged(replace(entered.at, wanted=False), None, Stat.GRAM)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert not any(module._forward_pre_hooks for module in entered.at.module.modules())
    after = collect(entered.at, Stat.GRAM)
    assert all(torch.equal(before[stream].gram_II, after[stream].gram_II) for stream in before)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_device_adds_without_being_waited_for(dtype: torch.dtype) -> None:
    """Tensors without values take the way of a GPU's; whatever asks for a value fails, and all sums are float32."""
    for needs in (EVERYTHING, Stat.INPUT_SQ_MEAN | Stat.INPUT_MOMENTS):
        sums = InputSums(needs)
        for windows in (3, 1):
            x_BTI = torch.empty(windows, 32, 1500, dtype=dtype, device="meta")
            sums.add(x_BTI, x_BTI)
        found = sums.finish()
        assert found.tokens == 4 * 32
        for name in ("gram_II", "dense_gram_II", "cross_gram_II", "input_sq_mean_I", "input_mean_I"):
            values = getattr(found, name)
            assert values is None or (values.dtype, set(values.shape)) == (torch.float32, {1500})


def test_products_of_16_bit_inputs_are_exact_in_float32() -> None:
    """So that a GPU may multiply them as they are: 8 bits of a bfloat16 times 8 are 16 of float32's 24."""
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal((a.float() * b.float()).double(), a.double() * b.double())


def test_norms_of_parts_are_those_of_the_whole_whatever_the_scale() -> None:
    """Fourth powers of 1e12 overflow float32; an input that is always zero has norms of zero."""
    x_NI = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([0, 1e-12, 1, 1e4, 1e12, 1e15])
    parts = [InputSums(OF_NORMS) for _ in range(2)]
    for part, share_NI in zip(parts, x_NI.split(40), strict=True):
        for batch_NI in share_NI.split(16):
            part.add(batch_NI[None])
    parts[0].merge(parts[1])
    found, exact_NI = parts[0].finish(), x_NI.double().abs()
    for name, expected_I in {
        "input_abs_mean_I": exact_NI.mean(dim=0),
        "input_fourth_root_I": exact_NI.pow(4).mean(dim=0).pow(0.25),
        "input_abs_max_I": exact_NI.amax(dim=0),
    }.items():
        torch.testing.assert_close(getattr(found, name).double(), expected_I, rtol=1e-5, atol=0)


def test_norms_of_ranks_are_those_of_all() -> None:
    on_ranks(2, _norms_on_a_rank)


def _norms_on_a_rank(ranks: Ranks) -> None:
    x_NI = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    own, whole = InputSums(OF_NORMS), InputSums(OF_NORMS)
    own.add(x_NI[ranks.share(30)][None])
    own.add_ranks(ranks)
    whole.add(x_NI[None])
    for name in ("input_abs_mean_I", "input_fourth_root_I", "input_abs_max_I"):
        torch.testing.assert_close(getattr(own.finish(), name), getattr(whole.finish(), name))


def test_of_too_few_tokens_nothing_is_believed() -> None:
    """An expert's: its inputs count as alike and independent, so that weights are judged by their magnitude."""
    needs = Stat.GRAM | Stat.INPUT_MOMENTS
    few, enough = InputSums(needs, least=4), InputSums(needs, least=4)
    for _ in range(3):
        few.add(torch.tensor([[1.0, 2.0]]))
        enough.add(torch.tensor([[1.0, 2.0]]))
    enough.add(torch.zeros(1, 2))
    found = few.finish()
    assert found.tokens == 3
    assert torch.equal(needed(found.gram_II, "gram"), torch.eye(2))
    assert torch.equal(needed(found.input_sq_mean_I, "squares"), torch.ones(2))
    assert torch.equal(needed(enough.finish().gram_II, "gram"), torch.tensor([[0.75, 1.5], [1.5, 3.0]]))
