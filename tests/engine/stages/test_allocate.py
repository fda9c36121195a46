"""Where the sparsity goes: whole groups, the best spread, the most that a perplexity allows; and nothing twice.

N = windows, T = tokens of a window.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.layer_inputs import inputs_of
from tests.helpers.mixtures import save
from tests.helpers.small_models import SIZES, SaveModel, Scratch, load, spec_of, text_of, walk
from workers.engine.architectures.architecture import LinearFacts
from workers.engine.contracts.facts import AllocationFacts
from workers.engine.contracts.params import Stat
from workers.engine.contracts.texts import Wanted
from workers.engine.events import Level, Silent
from workers.engine.methods.allocate import auto, search
from workers.engine.methods.allocate.auto import AutoParams
from workers.engine.methods.allocate.search import SearchParams
from workers.engine.model import curvature as probing
from workers.engine.model.calibration import Calibration
from workers.engine.model.curvature import curvature
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import consecutive_windows
from workers.engine.removals.spread import whole_groups
from workers.engine.sources.resolve import Sources
from workers.engine.stages.calibrate import calibration
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.store.run import Run


def blocks_of(sizes: Sequence[int]) -> list[LinearFacts]:
    """One layer a block, of so many rows of 8 weights."""
    return [LinearFacts(f"{block}.a", block, "x", (rows, 8)) for block, rows in enumerate(sizes)]


def mean(layers: Sequence[LinearFacts], found: Mapping[str, float]) -> float:
    return math.fsum(found[layer.name] * layer.parameters for layer in layers) / sum(i.parameters for i in layers)


class TestWholeGroups:
    @pytest.mark.parametrize("least", [0.0, 0.3, 0.45, 0.75])
    def test_no_layer_gets_less_than_the_least(self, least: float) -> None:
        layers = blocks_of([3, 5, 2, 9])
        wanted = {layer.name: share for layer, share in zip(layers, (0.45, 0.5, 0.45, 0.8), strict=True)}
        found = whole_groups(layers, wanted, (2, 4), least)
        assert all(share >= min(least, 0.5) for share in found.values())

    def test_by_hand(self) -> None:
        # Kept of 4: 1.3, 2.1, 2.6. Whole parts 1, 2, 2; the mean of 2 needs one more, for the greatest fraction, .6.
        layers = blocks_of([3, 3, 3])
        wanted = {"0.a": 1 - 1.3 / 4, "1.a": 1 - 2.1 / 4, "2.a": 1 - 2.6 / 4}
        assert whole_groups(layers, wanted, (2, 4)) == {"0.a": 0.75, "1.a": 0.5, "2.a": 0.25}

    def test_layers_of_a_block_that_share_a_sparsity_go_together(self) -> None:
        layers = [LinearFacts(name, 0, "x", (2, 8)) for name in "abc"]
        found = whole_groups(layers, {"a": 0.45, "b": 0.45, "c": 0.6}, (2, 4))
        # Kept of 4: 2.2, 2.2, 1.6. Whole parts 2, 2, 1; one layer's worth is missing, and c has the greatest fraction.
        assert found == {"a": 0.5, "b": 0.5, "c": 0.5}

    def test_uniform_stays_as_it_is(self) -> None:
        layers = blocks_of([3, 50, 7])
        # 1 - 2 / 7 is not 5 / 7 to the last bit, and 7 times it not 5.
        for n, m in ((2, 4), (5, 7), (1, 3), (7, 8), (1, 128)):
            wanted = {layer.name: 1 - n / m for layer in layers}
            assert whole_groups(layers, wanted, (n, m)) == pytest.approx(wanted, abs=1e-12)

    @pytest.mark.parametrize("seed", range(20))
    def test_whole_groups_near_what_was_wanted_with_the_patterns_mean(self, seed: int) -> None:
        chance = random.Random(seed)
        n, m = chance.choice([(2, 4), (4, 8), (1, 4), (3, 8), (8, 16)])
        layers = blocks_of([chance.randint(1, 40) for _ in range(9)])
        target = 1 - n / m
        # A spread with the exact mean, within what leaves 1 of M.
        room = min(target, n / m - 1 / m, 0.2)
        shift = [chance.uniform(-room, room) for _ in layers]
        excess = mean(layers, {layer.name: s for layer, s in zip(layers, shift, strict=True)})
        wanted = {layer.name: target + (s - excess) / 2 for layer, s in zip(layers, shift, strict=True)}
        found = whole_groups(layers, wanted, (n, m))
        for name, share in found.items():
            kept = m * (1 - share)
            assert kept == pytest.approx(round(kept), abs=1e-9)
            assert 1 <= round(kept) <= m
            assert abs(share - wanted[name]) < 1 / m + 1e-9, "a whole part, or one more"
        largest = max(layer.parameters for layer in layers) / sum(layer.parameters for layer in layers)
        assert abs(mean(layers, found) - target) <= largest / 2 / m + 1e-9

    def test_equal_blocks_keep_the_mean_exactly(self) -> None:
        chance = random.Random(0)
        layers = blocks_of([5] * 8)
        shift = [chance.uniform(-0.2, 0.2) for _ in layers]
        wanted = {layer.name: 0.5 + s - sum(shift) / 8 for layer, s in zip(layers, shift, strict=True)}
        assert mean(layers, whole_groups(layers, wanted, (2, 4))) == 0.5

    def test_at_least_one_is_kept(self) -> None:
        layers = blocks_of([4, 4])
        # Kept of 4: 0.4 and 3.6. One and 3 make the mean of 2.
        assert whole_groups(layers, {"0.a": 0.9, "1.a": 0.1}, (2, 4)) == {"0.a": 0.75, "1.a": 0.25}


def searched(
    sizes: Sequence[int], target: float, loss: Callable[[list[float]], float], **params: Any
) -> tuple[list[float], list[list[float]]]:
    """The result of `search` for a loss of the blocks' sparsities, and all it tried."""
    layers, tried = blocks_of(sizes), list[list[float]]()

    def trial(sparsity: Mapping[str, float]) -> float:
        tried.append([sparsity[layer.name] for layer in layers])
        return loss(tried[-1])

    found = search.allocate(AllocationFacts(layers, {}, trial), target, SearchParams(**params))
    return [found[layer.name] for layer in layers], tried


class TestSearch:
    @pytest.mark.parametrize(
        ("sizes", "costs", "optimum"),
        [
            # Sum of a s^2 with the mean of n s given is least at s in proportion to n / a.
            ([1, 1], [2, 3], [0.72, 0.48]),
            ([1, 1, 1], [3, 3, 2], [0.6 * 6 / 7, 0.6 * 6 / 7, 0.6 * 9 / 7]),
            ([1, 3], [1, 2.4], [0.5052631578947369, 0.631578947368421]),
        ],
    )
    def test_finds_the_optimum_of_a_convex_loss(
        self, sizes: Sequence[int], costs: Sequence[float], optimum: Sequence[float]
    ) -> None:
        assert math.fsum(n * s for n, s in zip(sizes, optimum, strict=True)) / sum(sizes) == pytest.approx(0.6)
        found, tried = searched(sizes, 0.6, lambda s: sum(a * x * x for a, x in zip(costs, s, strict=True)), rounds=5)
        # The last round looks 0.12 / 16 around.
        assert found == pytest.approx(optimum, abs=0.12 / 16)
        assert len(tried) <= 1 + 5 * (2 * len(sizes) + 3)

    def test_sees_what_blocks_do_together(self) -> None:
        # Either block alone may lose all; what both lose counts. Sum 1.2, so the product is least far apart.
        found, _ = searched([1, 1], 0.6, lambda s: s[0] * s[1] + 0.2 * s[0] ** 2, rounds=6, radius=0.3)
        assert found[1] - found[0] > 0.4

    @pytest.mark.parametrize("seed", range(8))
    @pytest.mark.parametrize("target", [0.05, 0.5, 0.9, 0.995])
    def test_is_never_worse_than_uniform(self, seed: int, target: float) -> None:
        chance = random.Random(seed)
        waves = [(chance.uniform(1, 60), chance.uniform(0, 6)) for _ in range(5)]

        def loss(spread: list[float]) -> float:
            """Nothing to rely on: neither convex nor rising."""
            return sum(math.sin(f * s + p) for s, (f, p) in zip(spread, waves, strict=True))

        sizes = [chance.randint(1, 9) for _ in waves]
        found, tried = searched(sizes, target, loss)
        assert loss(found) <= loss([target] * 5)
        assert loss(found) == min(loss(s) for s in tried if s == found)
        parameters = sum(sizes)
        assert math.fsum(n * s for n, s in zip(sizes, found, strict=True)) / parameters == pytest.approx(target)

    @pytest.mark.parametrize(("granularity", "shares"), [("block", 1), ("stream", 2)])
    def test_what_shares_a_sparsity(self, granularity: str, shares: int) -> None:
        layers = [LinearFacts(f"{block}.{s}.{i}", block, s, (4, 8)) for block in (0, 1) for s in "xy" for i in "ab"]

        def trial(sparsity: Mapping[str, float]) -> float:
            return sum((1 + index) * sparsity[layer.name] ** 2 for index, layer in enumerate(layers))

        params = SearchParams(granularity=granularity)  # type: ignore[arg-type]
        found = search.allocate(AllocationFacts(layers, {}, trial), 0.5, params)
        for block in "01":
            for stream in "xy":
                assert found[f"{block}.{stream}.a"] == found[f"{block}.{stream}.b"]
            assert len({share for name, share in found.items() if name[0] == block}) == shares
        assert found["0.x.a"] > found["1.y.a"]
        assert mean(layers, found) == pytest.approx(0.5)

    def test_takes_no_step_that_only_seems_better(self) -> None:
        # Each block alone is better off elsewhere, but any way there together is worse.
        def loss(spread: list[float]) -> float:
            moved = [abs(s - 0.5) > 1e-9 for s in spread]
            return 1.0 - 0.1 * (sum(moved) == 1) + sum(moved[:2]) * (sum(moved) > 1)

        assert searched([1, 1, 1], 0.5, loss)[0] == [0.5] * 3


PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 64, "samples": 4}


class TestAuto:
    def test_takes_what_loses_least_and_of_equals_the_first(self) -> None:
        spreads = {
            "uniform": {"0.a": 0.5, "1.a": 0.5},
            "owl": {"0.a": 0.4, "1.a": 0.6},
            "dlp": {"0.a": 0.6, "1.a": 0.4},
        }
        losses = {0.5: 2.0, 0.4: 1.0, 0.6: 1.0}
        facts = AllocationFacts(
            blocks_of([1, 1]),
            {},
            lambda sparsity: losses[sparsity["0.a"]],
            {name: lambda _, found=found: found for name, found in spreads.items()},  # type: ignore[misc]
        )
        for among, taken in ((("uniform", "owl", "dlp"), "owl"), (("dlp", "owl"), "dlp"), (("uniform", "dlp"), "dlp")):
            assert auto.allocate(facts, 0.5, AutoParams(among=among)) == spreads[taken]

    def test_a_job_is_pruned_as_the_best_allocator_alone_would(self, examples: Sources, tmp_path: Path) -> None:
        """Also one that makes trials of its own, and with the losses in the resume points."""
        parts: dict[str, Any] = {
            "model": {"id": "bookworm-7m"},
            "calibrate": {"dataset": "calibration.txt", "samples": 4, "sequence_length": 64},
            "prune": {"method": "mask", "sparsity": 0.7},
        }
        among = ("uniform", "owl", "alpha_pruning", "atp")
        done = walk(spec_of(**parts, allocate={"method": "auto", "among": among}), examples, tmp_path / "auto")
        losses = done.allocation.trials
        assert tuple(losses) == among
        assert losses["alpha_pruning"] > losses["uniform"]  # it spoils this model
        taken = min(losses, key=lambda name: losses[name])
        alone = walk(spec_of(**parts, allocate={"method": taken}), examples, tmp_path / taken)
        assert done.allocation.sparsity == alone.allocation.sparsity
        again = walk(spec_of(**parts, allocate={"method": "auto", "among": among}), examples, tmp_path / "auto")
        assert again.allocation == done.allocation

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"prune": {"method": "mask", "pattern": "2:4"}}, "tries out unstructured sparsity"),
            ({"prune": {"method": "structured", "sparsity": 0.5}}, "tries out prunings of single weights"),
            ({"allocate": {"method": "auto", "among": ["owl", "owl"]}}, "every allocator once"),
            ({"allocate": {"method": "auto", "among": ["owl"]}}, "at least 2"),
        ],
    )
    def test_is_refused_where_its_trials_say_nothing(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            spec_of(**{"allocate": {"method": "auto"}, **parts})


def test_a_perplexity_ratio_is_kept_and_one_step_more_breaks_it(examples: Sources, tmp_path: Path) -> None:
    """On the shipped model, whose trials are redone here with the whole model and masks by sorting."""
    spec = spec_of(
        model={"id": "bookworm-7m"},
        calibrate={"dataset": "calibration.txt", "samples": 8, "sequence_length": 64},
        prune={"method": "mask", "perplexity_ratio": 1.15},
        evaluate=[{"method": "size"}, PERPLEXITY],
    )
    done = walk(spec, examples, tmp_path)
    target, reached = done.allocation.target, done.allocation.predicted
    assert reached is not None
    assert reached <= 1.15
    assert 0.2 < target < 0.9
    zeros = sum(report.zeros for report in done.reports(tmp_path / "model"))
    # Rows drop whole weights: of 256 and more inputs, less than half a hundredth.
    assert zeros / done.model.architecture.prunable_parameters == pytest.approx(target, abs=0.005)

    dense = AutoModelForCausalLM.from_pretrained(done.model.path, dtype=torch.float32).eval()
    text = calibration(spec, done.model, examples)
    assert text is not None
    norms = [inputs_of(dense, text.windows_NT, block) for block in range(8)]
    tokens = load_tokens(spec.evaluate[1], done.model.tokenizer, examples, "", Wanted(4, 64))  # type: ignore[arg-type]
    windows_NT = consecutive_windows(tokens, 64, count=4, field="")

    def loss(sparsity: float) -> float:
        model = copy.deepcopy(dense)
        for layer in done.model.architecture.layers:
            weight_OI = model.get_submodule(layer.name).weight.data
            score_OI = weight_OI.abs() * norms[layer.block][layer.stream].square().mean(dim=0).sqrt().float()
            lowest = score_OI.argsort(dim=1, stable=True)[:, : int(layer.shape[1] * sparsity + 1e-9)]
            weight_OI.scatter_(1, lowest, 0)
        with torch.no_grad():
            return sum(model(ids[None], labels=ids[None]).loss.item() for ids in windows_NT) / 4

    assert math.exp(loss(target) - loss(0.0)) == pytest.approx(reached, rel=1e-4)
    assert math.exp(loss(target + 1 / 256) - loss(0.0)) > 1.15


def test_nothing_goes_where_nothing_may(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    """A random model's perplexity moves at the first weight; whatever is found keeps the ratio."""
    spec = spec_of(
        prune={"method": "mask", "perplexity_ratio": 1.0000001},
        evaluate=[PERPLEXITY | {"sequence_length": 32}],
    )
    done = walk(spec, sources, tmp_path)
    assert done.allocation.predicted is not None
    assert done.allocation.predicted <= 1.0000001


def test_trials_and_the_walk_look_at_the_statistics_of_the_score(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    """And at no others: where the largest inputs count, blocks lose other weights than where squares do."""
    search = {"method": "search", "rounds": 1}
    found = {
        norm: walk(spec_of(score={"method": "wanda", "norm": norm}, allocate=search), sources, tmp_path / norm)
        for norm in ("l2", "max")
    }
    assert found["l2"].blocks() != found["max"].blocks()
    spec = spec_of(score={"method": "wanda", "norm": "max"}, allocate=search)
    assert spec.needs == Stat.INPUT_ABS_MAX | Stat.LOSS
    assert (spec.walk_needs, spec_of(score={"method": "wanda"}).needs) == (Stat.INPUT_ABS_MAX, Stat.INPUT_SQ_MEAN)


class Read(AssertionError):
    """Activations of the dense model were looked at."""


def test_what_was_measured_is_not_measured_again(
    tiny: Path, save_model: SaveModel, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    first = walk(spec_of(allocate={"method": "owl"}), sources, tmp_path / "first", cache=cache)
    entries = sorted(file.name for file in cache.rglob("*.*"))
    assert len(entries) == 2

    def read(*_: Any, **__: Any) -> None:
        raise Read

    monkeypatch.setattr("workers.engine.model.dense_statistics.collect", read)
    again = walk(spec_of(allocate={"method": "owl"}), sources, tmp_path / "again", cache=cache)
    assert again.allocation == first.allocation
    assert again.blocks() == first.blocks()
    # What is measured of the same statistics with other parameters, or for another method, is another entry.
    for number, allocate in enumerate([{"method": "owl", "outlier_multiple": 2}, {"method": "dlp"}]):
        other = walk(spec_of(allocate=allocate), sources, tmp_path / f"other-{number}", cache=cache)
        assert other.allocation != first.allocation
        assert len(list(cache.rglob("*.*"))) == 3 + number

    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32}
    for number, parts in enumerate(
        [{"calibrate": text | {"seed": 1}}, {"calibrate": text | {"samples": 7}}, {"compute": {"dtype": "bfloat16"}}]
    ):
        with pytest.raises(Read):
            walk(spec_of(allocate={"method": "owl"}, **parts), sources, tmp_path / f"text-{number}", cache=cache)
    save_model("tiny", LlamaConfig(**SIZES | {"rms_norm_eps": 1e-3}))
    with pytest.raises(Read):
        walk(spec_of(allocate={"method": "owl"}), sources, tmp_path / "model", cache=cache)


@pytest.mark.parametrize("allocate", [{"method": "owl"}, {"method": "search", "rounds": 1}], ids=["owl", "search"])
def test_what_all_experts_read_for_is_another_entry(allocate: dict[str, Any], sources: Sources, tmp_path: Path) -> None:
    save("mixtral", sources.models_dir / "tiny")
    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32}
    found = [
        walk(
            spec_of(calibrate=text | {"all_experts": every}, allocate=allocate),
            sources,
            tmp_path / name,
            cache=tmp_path / cache,
        )
        for name, cache, every in (("routed", "cache", False), ("every", "cache", True), ("alone", "other", True))
    ]
    routed, every, alone = (walked.allocation for walked in found)
    assert every == alone != routed


def test_sums_in_another_order_are_another_entry(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result does not depend on the memory of the job before."""
    found = []
    for name, cache, tokens in (("few", "cache", 32), ("many", "cache", 256), ("alone", "other", 256)):
        monkeypatch.setattr("workers.engine.stages.load.BATCH_TOKENS", tokens)
        walked = walk(spec_of(allocate={"method": "dlp"}), sources, tmp_path / name, cache=tmp_path / cache)
        found.append(walked.allocation)
    few, many, alone = found
    assert many == alone != few


@pytest.mark.parametrize("kind", ["dense-input-statistics", "allocator-metrics"])
def test_a_broken_entry_is_measured_again(kind: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec, cache = spec_of(allocate={"method": "owl"}), tmp_path / "cache"
    first = walk(spec, sources, tmp_path / "first", cache=cache)
    (entry,) = (cache / kind).iterdir()
    whole = entry.read_bytes()
    # Cut short, emptied, one bit turned, another type of the same format, another value of the same type.
    flipped = bytes([whole[len(whole) // 2] ^ 1])
    turned = whole[: len(whole) // 2] + flipped + whole[len(whole) // 2 + 1 :]
    for number, damaged in enumerate((whole[:-7], b"", turned, b"[]", b"{}")):
        entry.write_bytes(damaged)
        again = walk(spec, sources, tmp_path / f"again-{number}", cache=cache)
        assert again.allocation == first.allocation
        if kind == "allocator-metrics":  # the other is asked for only where this is not found
            assert entry.read_bytes() == whole, "kept anew"


def test_curvature_is_that_of_the_exact_hessian(
    save_model: SaveModel, sources: Sources, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean of z^T H z over the signs that were drawn, z being a layer's part on one side and all on the other; over
    all signs that would be the layer's trace. 368 weights: H by automatic differentiation."""
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    # Large weights, so that attention is not uniform and its projections matter.
    folder = save_model("tiny", LlamaConfig(**SIZES | sizes | heads, initializer_range=0.6))
    model = load(spec_of(score={"method": "magnitude"}, calibrate=None), sources)
    windows_NT = torch.randint(16, (3, 12), generator=torch.Generator().manual_seed(0))
    drawn: list[Tensor] = []
    real = probing._signs

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        drawn.append(real(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(probing, "_signs", recorded)
    monkeypatch.setattr(probing, "MOST_PROBES", 3)
    found = curvature(model, Calibration(windows_NT, "text"), Run.of(scratch, Silent()), seed=0)
    signs = torch.cat([drawn_OI.flatten() for drawn_OI in drawn]).view(3, -1).double()
    assert signs.unique().tolist() == [-1, 1]

    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    names = [f"{layer.name}.weight" for layer in model.architecture.layers]
    shapes = [dense.get_parameter(name).shape for name in names]
    flat = torch.cat([dense.get_parameter(name).detach().flatten() for name in names])
    expected = torch.zeros(len(flat), dtype=torch.float64)
    for ids_T, z in zip(windows_NT, signs, strict=True):

        def loss(weights: Tensor, ids_T: Tensor = ids_T) -> Tensor:
            parts = [p.view(s) for p, s in zip(weights.split([s.numel() for s in shapes]), shapes, strict=True)]
            values = dict(zip(names, parts, strict=True))
            logits = functional_call(dense, values, kwargs={"input_ids": ids_T[None]}).logits
            return cross_entropy(logits[0, :-1], ids_T[1:])

        hessian = torch.autograd.functional.hessian(loss, flat).double()  # type: ignore[no-untyped-call]
        expected += z * (hessian @ z) / 3
    for layer, part in zip(model.architecture.layers, expected.split([shape.numel() for shape in shapes]), strict=True):
        # Float32 sums of some hundred terms of either sign, of which the result is a small difference.
        assert found[layer.name] == pytest.approx(abs(part.sum().item()), abs=1e-5 * part.abs().sum().item())


def traces(
    folder: Path, sources: Sources, text: Calibration | None = None, events: Silent | None = None, *, seed: int = 0
) -> dict[str, float]:
    """The curvature of `tiny`, with its resume points in a folder."""
    spec = spec_of(allocate={"method": "isc"})
    model = load(spec, sources)
    text = text or text_of(spec, model, sources)
    return curvature(model, text, Run.of(Checkpoint(folder), events or Silent()), seed=seed)


def test_probes_read_one_window_after_the_other(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "MOST_PROBES", 4)
    spec = spec_of(allocate={"method": "isc"})
    text = text_of(spec, load(spec, sources), sources)
    found = traces(tmp_path / "all", sources)
    assert found != traces(tmp_path / "flipped", sources, replace(text, windows_NT=text.windows_NT.flip(0)))
    assert found != traces(tmp_path / "seed", sources, seed=1)
    assert found == traces(tmp_path / "four", sources, replace(text, windows_NT=text.windows_NT[:4]))
    assert found != traces(tmp_path / "two", sources, replace(text, windows_NT=text.windows_NT[:2]))
    assert all(math.isfinite(trace) and trace >= 0 for trace in found.values())


def test_signs_are_unpacked_on_a_device_as_on_the_cpu() -> None:
    packed = np.frombuffer(bytearray(np.random.default_rng(0).bytes(40)), np.uint8)
    for count in (313, 320):
        expected = torch.from_numpy(np.unpackbits(packed, count=count))
        assert torch.equal(probing._unpacked(torch.from_numpy(packed), count), expected)


def test_a_layers_signs_hang_on_no_other() -> None:
    weight_OI = torch.zeros(5, 7)
    signs_OI = probing._signs("a", weight_OI, seed=0, probe=0)
    assert torch.equal(signs_OI, probing._signs("a", weight_OI, seed=0, probe=0))
    others = [("b", 0, 0), ("a", 1, 0), ("a", 0, 1)]
    for name, seed, probe in others:
        assert not torch.equal(signs_OI, probing._signs(name, weight_OI, seed=seed, probe=probe))


@pytest.mark.parametrize(("noise", "probes", "level"), [(0.0, 16, "info"), (0.5, 128, "info"), (1e9, 256, "warning")])
def test_probes_are_drawn_until_the_ranks_hold_still(
    noise: float, probes: int, level: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer n of 21 has a sensitivity of n + 1, and a probe is off by some multiple of it."""
    chance = random.Random(1)

    def along(whole: Any, layers: Any, weights: Any, signs: Mapping[str, Tensor], *_: Any) -> list[float]:
        return [w.numel() * (n + 1) * (1 + noise * chance.gauss(0, 1)) for n, w in enumerate(signs.values())]

    monkeypatch.setattr(probing, "_along", along)
    events = Logged()
    found = list(traces(tmp_path, sources, events=events).values())
    ((said, line),) = events.lines
    assert said == level
    assert line.startswith("curvature: ")
    drawn = int(line.split()[1])
    assert drawn == probes if level == "warning" or not noise else 16 < drawn <= probes
    if level == "info":
        halves = Checkpoint(tmp_path).load_json("curvature")
        assert halves is not None
        assert len(halves) == drawn
        sizes = [layer.parameters for layer in load(spec_of(), sources).architecture.layers]
        order = [trace / size for trace, size in zip(found, sizes, strict=True)]
        from scipy.stats import spearmanr  # as the measurement itself, which has imported it

        assert spearmanr(order, range(21)).statistic > 0.95


def test_a_killed_measurement_of_curvature_goes_on(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "MOST_PROBES", 16)
    whole = traces(tmp_path / "whole", sources)
    monkeypatch.setattr(probing, "MOST_PROBES", 8)
    traces(tmp_path / "killed", sources)
    monkeypatch.setattr(probing, "MOST_PROBES", 16)
    events = Logged()
    assert traces(tmp_path / "killed", sources, events=events) == whole
    assert events.probes == list(range(9, 17))


class Logged(Silent):
    def __init__(self) -> None:
        self.lines: list[tuple[Level, str]] = []
        self.probes: list[int] = []

    def log(self, message: str, level: Level = "info") -> None:
        self.lines.append((level, message))

    def progress(self, done: int, total: int, unit: str, loss: float | None = None) -> None:
        self.probes += [done] if unit == "probe" else []
