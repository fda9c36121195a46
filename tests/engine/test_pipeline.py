"""The engine refuses or adapts to: too little memory, text without language, weights that are not finite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.helpers.small_models import block_tensors, load, spec_of, walk
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.params import Stat
from workers.engine.errors import DegenerateCalibration, EngineError, MemoryBudgetTooSmall, NumericalFailure
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.planning.predictions import BATCH_TOKENS, GPU_BATCH_TOKENS, batch_tokens, walk_bytes, whole_models
from workers.engine.registry import methods
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.store.checkpoint import Checkpoint

TEXT = {"dataset": "calibration.txt", "samples": 128, "sequence_length": 32}  # BATCH_TOKENS altogether
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 128, "samples": 20}


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def run(spec: Any, sources: Sources, folder: Path, events: Silent | None = None) -> Report:
    return compress(spec, folder, sources, events or Silent(), folder / "checkpoint")


def peak(sources: Sources, **parts: Any) -> int:
    return plan(spec_of(**parts), sources).peak_memory_bytes


class TestMemoryBudget:
    def test_halves_the_batches_until_it_is_kept(self, tiny: Path, sources: Sources) -> None:
        def batch(budget: int | None) -> tuple[int, int]:
            spec = spec_of(calibrate=TEXT, compute={"device": "cpu", "memory_budget": budget})
            return load(spec, sources).batch_tokens, plan(spec, sources).peak_memory_bytes

        found = [batch(None)]
        assert found[0][0] == BATCH_TOKENS
        # Down to where the activations of a batch are no longer what takes most.
        for _ in range(4):
            tokens, peak = batch(found[-1][1] - 1)
            assert peak < found[-1][1]
            found.append((tokens, peak))
        assert [tokens for tokens, _ in found] == [BATCH_TOKENS // 2**i for i in range(5)]

    def test_a_gpus_batches_are_halved_the_same_way(self, tiny: Path, sources: Sources) -> None:
        spec = spec_of(calibrate=TEXT | {"samples": 2048})
        source = resolve_model(spec.model, sources)
        model = source, recognise(source.config, source.stored)
        sizes = [GPU_BATCH_TOKENS // 2**i for i in range(3)]
        for tokens in sizes:
            budget = walk_bytes(spec, *model, tokens)
            assert batch_tokens(spec, *model, budget=budget, most=GPU_BATCH_TOKENS) == tokens
        assert batch_tokens(spec, *model, budget=None, most=GPU_BATCH_TOKENS) == GPU_BATCH_TOKENS >= 10_000

    def test_smaller_batches_prune_alike(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        budget = None
        for _ in range(3):
            budget = peak(sources, calibrate=TEXT, compute={"memory_budget": budget}) - 1
        for name, allowed, batch in (("large", None, BATCH_TOKENS), ("small", budget, BATCH_TOKENS // 8)):
            spec = spec_of(calibrate=TEXT, compute={"memory_budget": allowed})
            assert load(spec, sources).batch_tokens == batch
            run(spec, sources, tmp_path / name)
        large, small = (load_file(tmp_path / name / "model/model.safetensors") for name in ("large", "small"))
        differing = sum(int((large[name] != small[name]).sum()) for name in large)
        # Sums over other batches round differently: a near tie in 20,000 may fall the other way.
        assert differing <= 4

    def test_models_that_do_not_fit_are_measured_block_by_block(
        self, tiny: Path, sources: Sources, tmp_path: Path
    ) -> None:
        # Logits of 64 windows at once are what does not fit: 64 x 128 x 4096 x 12 bytes, 384 MiB.
        parts = {"evaluate": [{"method": "size"}, PERPLEXITY | {"batch_size": 64}]}
        events = Lines()
        whole = run(spec_of(**parts), sources, tmp_path / "whole", events)
        assert not any("block by block" in line for line in events.lines)
        budget = peak(sources, **parts) - 1
        streamed = run(spec_of(**parts, compute={"memory_budget": budget}), sources, tmp_path / "streamed", events)
        assert any(f"{budget / 2**20:.0f} MiB: they are measured block by block" in line for line in events.lines)
        assert [m.name for m in whole.metrics] == [m.name for m in streamed.metrics]
        for one, other in zip(whole.metrics, streamed.metrics, strict=True):
            assert other.dense == pytest.approx(one.dense, rel=1e-5)
            assert other.pruned == pytest.approx(one.pruned, rel=1e-5)
        assert whole.metrics[-1].dense != whole.metrics[-1].pruned

    def test_two_models_are_planned_where_both_are_timed_in_turn(self, tiny: Path, sources: Sources) -> None:
        def models(budget: int | None, **parts: Any) -> int:
            model = load(spec_of(**parts), sources)
            return whole_models(spec_of(**parts), model.source, model.architecture, budget)

        speed = {"evaluate": [{"method": "generation_speed", "prompt_tokens": 64, "batch_size": 64}]}
        timed = {
            "score": {"method": "magnitude"},
            "prune": {"method": "structured", "at_most": {"decode_time": 0.5, "tokens": 8}, "compensate": False},
        }
        for parts in (speed, timed):
            assert models(None, **parts) == 2
        assert models(None, evaluate=[PERPLEXITY]) == 1
        both = peak(sources, **speed)
        assert models(both, **speed) == 2
        assert models(both - 1, **speed) == 1  # loaded in turn
        cached = 64 * (64 + 32) * 3 * 2 * 16 * 4  # keys and values of 16 numbers in three blocks
        one = resolve_model(spec_of().model, sources).parameters * 4 + cached
        assert peak(sources, **speed, compute={"memory_budget": both - 1}) == both - one
        with pytest.raises(MemoryBudgetTooSmall) as refused:
            models(both - one - 1, **speed)
        assert refused.value.field == "/evaluate/0"
        with pytest.raises(MemoryBudgetTooSmall) as refused:
            models(1, **timed)
        assert refused.value.field == "/prune/at_most/decode_time"

    def test_a_timing_takes_what_its_prompt_takes_and_no_logits(self, tiny: Path, sources: Sources) -> None:
        def of(**params: int) -> int:
            return peak(sources, evaluate=[{"method": "generation_speed", "batch_size": 256, **params}])

        short, long = of(prompt_tokens=8, new_tokens=8), of(prompt_tokens=96, new_tokens=8)
        # Of 88 tokens more: numbers on their way, 6 * 48 + 12 * 32, and the keys and values of both models.
        assert long - short == 256 * 88 * 4 * (6 * 48 + 12 * 32 + 2 * 3 * 2 * 16)
        assert short - peak(sources) < 256 * 512 * 4096 * 4, "logits of the last position only are asked for"

    @pytest.mark.parametrize(
        ("parts", "field"),
        [
            ({}, "/compute/memory_budget"),
            ({"evaluate": [{"method": "size"}, {"method": "generation_speed", "prompt_tokens": 64}]}, "/evaluate/1"),
        ],
        ids=["calibration", "whole-model"],
    )
    def test_too_little_is_refused_before_any_work_and_says_how_much_is_enough(
        self, parts: dict[str, Any], field: str, tiny: Path, sources: Sources
    ) -> None:
        # What only the walk takes, less than the whole model does; or less than Python itself.
        budget = 260 * 2**20
        if parts:
            budget = peak(sources)
            parts["evaluate"][1]["batch_size"] = 64
        spec = spec_of(**parts, compute={"memory_budget": budget})
        with pytest.raises(MemoryBudgetTooSmall, match=f"{budget / 2**20:.0f} MiB") as planned:
            plan(spec, sources)
        with pytest.raises(MemoryBudgetTooSmall) as done:
            load(spec, sources)
        assert planned.value.field == done.value.field == field
        enough = int(planned.value.hint.split("allow ")[1].split(" bytes")[0])
        plan(spec_of(**parts, compute={"memory_budget": enough}), sources)
        with pytest.raises(MemoryBudgetTooSmall):
            plan(spec_of(**parts, compute={"memory_budget": enough - 1}), sources)


class TestDegenerateCalibration:
    @pytest.mark.parametrize(
        "text", ["the the the the " * 3000, "\n" * 20_000, "yes no " * 5000], ids=["one", "none", "two"]
    )
    def test_text_without_language_is_refused(self, text: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        (sources.data_dir / "calibration.txt").write_text(text)
        with pytest.raises(DegenerateCalibration, match=r"calibration\.txt hold \d+ different tokens") as found:
            walk(spec_of(), sources, tmp_path)
        assert found.value.field == "/calibrate/dataset"
        assert not found.value.retryable

    @pytest.mark.parametrize("text", [{"samples": 1, "sequence_length": 8}, {"samples": 8, "sequence_length": 32}])
    def test_little_text_is_not(self, text: dict[str, Any], tiny: Path, sources: Sources, tmp_path: Path) -> None:
        walk(spec_of(calibrate={"dataset": "calibration.txt"} | text), sources, tmp_path)


def broken(folder: Path, name: str, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[7] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def specs() -> list[Any]:
    """Every pruner, with a score and without, every refiner and every allocator, with both refreshes; every score of
    units."""
    found = []
    for refresh in ("block", "projection"):
        parts: dict[str, dict[str, Any]] = {}
        for method in methods("prune"):
            if "weight" not in method.units:
                continue
            prune = {"prune": {"method": method.name, "sparsity": 0.5}}
            if method.scores != "unused":
                parts[f"{method.name}-scored"] = prune
            if method.scores != "required":
                parts[method.name] = prune | {"score": None}
        for refiner in methods("refine"):
            parts[refiner.name] = {"refine": {"method": refiner.name}}
        for allocator in methods("allocate") if refresh == "block" else ():
            if Stat.UNIT_SCORES in allocator.needs:
                continue
            parts[f"{allocator.name}-wanda"] = {"allocate": {"method": allocator.name}}
            parts[f"{allocator.name}-magnitude"] = {
                "allocate": {"method": allocator.name},
                "score": {"method": "magnitude"},
            }
        text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32, "refresh": refresh}
        found += [pytest.param(p | {"calibrate": text}, id=f"{name}-{refresh}") for name, p in parts.items()]
    for method in methods("prune"):
        if {"weight", "expert", "expert_channel"} & {*method.units}:  # of experts: removals/test_expert*.py
            continue
        shaped = "sparsity" not in method.params.model_fields  # then a score is about all that goes
        target = {"hidden": 24, "heads": 2, "layers": 2, "channels": 32} if shaped else {"sparsity": 0.34}
        prune = {"method": method.name} | target
        for scorer in methods("score"):
            if {*method.units} <= {*scorer.units} or (not shaped and {*scorer.units} & {*method.units}):
                ends = {name: 0 for name in ("protect_first", "protect_last") if name in scorer.params.model_fields}
                score = {"method": scorer.name, **ends}
                found.append(pytest.param({"prune": prune, "score": score}, id=f"{method.name}-{scorer.name}"))
        if "head" in method.units and not shaped:
            plain = {"prune": prune | {"compensate": False}, "score": {"method": "random"}}
            found.append(pytest.param(plain, id=f"{method.name}-plain"))
            ranked = {"prune": prune, "allocate": {"method": "ranking"}}
            found.append(pytest.param(ranked, id=f"{method.name}-ranking"))
    found.append(
        pytest.param(
            {
                "prune": {"method": "mask", "perplexity_ratio": 1.5},
                "evaluate": [PERPLEXITY | {"samples": 2}],
            },
            id="perplexity-ratio",
        )
    )
    return found


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("model.embed_tokens.weight", math.inf),
        ("model.layers.1.self_attn.v_proj.weight", math.nan),
        ("model.layers.2.mlp.down_proj.weight", math.inf),
    ],
)
@pytest.mark.parametrize("parts", specs())
def test_a_broken_model_is_a_named_failure_and_no_file(
    parts: dict[str, Any], tensor: str, value: float, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    if tensor == "model.embed_tokens.weight":
        # The row of a token that the text has: the model may be whole where it is not looked at.
        tensors = load_file(tiny / "model.safetensors")
        tensors[tensor][:, 3] = value
        save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
        if spec_of(**parts).needs is Stat.NONE:
            pytest.skip("looks at no activations: the blocks are sound")
    else:
        broken(tiny, tensor, value)
    with pytest.raises(EngineError) as failure:
        walk(spec_of(**parts), sources, tmp_path)
    assert isinstance(failure.value, NumericalFailure)
    assert failure.value.hint
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    for block in range(checkpoint.finished_blocks()):
        assert all(stored.isfinite().all() for stored in block_tensors(checkpoint, block).values())


@pytest.mark.parametrize(
    ("tensor", "parts"),
    [
        ("model.norm.weight", {"score": {"method": "magnitude"}}),
        ("model.layers.1.input_layernorm.weight", {}),
        ("model.layers.1.self_attn.v_proj.weight", {}),
        # Seen by nothing but the measurement of the dense model.
        ("lm_head.weight", {"score": {"method": "magnitude"}, "evaluate": [PERPLEXITY | {"samples": 2}]}),
    ],
)
def test_a_broken_dense_model_is_blamed_itself(
    tensor: str, parts: dict[str, Any], tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    broken(tiny, tensor, math.nan)
    with pytest.raises(NumericalFailure, match=rf"^{tensor}: 1 of its [\d,]+ values are infinite or NaN") as failure:
        run(spec_of(**parts), sources, tmp_path / "run")
    assert failure.value.field == "/model/id"
    assert "sparsity" not in failure.value.hint
