"""A dry run: what it says, that a job then does it, and that it refuses what a job would refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen3MoeConfig

from tests.families.checkpoints import save_tiny
from tests.helpers.mixtures import save
from tests.helpers.small_models import SIZES, SaveModel, load, spec_of
from workers.engine.architectures.entries import check_config
from workers.engine.errors import DatasetNotFound, EngineError, InvalidSpec, SequenceTooLong, UnsupportedModel
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec

PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32}


def test_bookworm(examples: Sources) -> None:
    found = plan(
        spec_of(
            model={"id": "bookworm-7m"},
            calibrate={"dataset": "calibration.txt", "samples": 64, "sequence_length": 512},
            evaluate=[PERPLEXITY],
        ),
        examples,
    )
    assert (found.architecture, found.blocks, len(found.layers)) == ("llama", 8, 56)
    assert (found.parameters, found.prunable_parameters) == (6_951_168, 5_898_240)
    assert found.zeros_after == 5_898_240 // 2
    assert found.bytes_before == found.bytes_after == 2 * 6_951_168
    assert found.layers[1].name == "model.layers.0.self_attn.k_proj"
    assert (found.layers[1].shape, found.layers[1].target_sparsity) == ((128, 256), 0.5)
    assert found.warnings == []
    assert {runtime.runtime: (runtime.loads, runtime.faster) for runtime in found.runtimes} == {
        "transformers": (True, False),
        "vLLM": (True, False),
    }


def test_other_type_other_bytes(examples: Sources) -> None:
    found = plan(spec_of(model={"id": "bookworm-7m"}, package={"dtype": "float32"}), examples)
    assert found.bytes_after == 2 * found.bytes_before


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"score": {"method": "magnitude"}}, "`calibrate` is not used"),
        # Rows of 256 drop 153 of 153.6, rows of 704 drop 422 of 422.4.
        ({"prune": {"method": "mask", "sparsity": 0.6}}, "0.5981 of the weights will be removed, not 0.6"),
        ({}, "no evaluation is asked for"),
    ],
)
def test_warns(parts: dict[str, Any], words: str, examples: Sources) -> None:
    found = plan(spec_of(model={"id": "bookworm-7m"}, **parts), examples)
    assert any(words in warning for warning in found.warnings)


class TestWhatTheJobMeasures:
    """Sparsities that only the job can know are not made up; the counts that follow from the target are."""

    @pytest.mark.parametrize("allocate", ["owl", "alpha_pruning", "search", "isc"])
    def test_allocations(self, allocate: str, examples: Sources) -> None:
        found = plan(spec_of(model={"id": "bookworm-7m"}, allocate={"method": allocate}), examples)
        assert {layer.target_sparsity for layer in found.layers} == {None}
        assert found.zeros_after == 5_898_240 // 2
        assert any("measured by the job" in warning for warning in found.warnings)

    def test_an_allocation_that_measures_nothing_is_known(self, examples: Sources) -> None:
        allocate = {"method": "atp", "beta": 0.02}
        found = plan(spec_of(model={"id": "bookworm-7m"}, allocate=allocate), examples)
        # Eight blocks of the same size, 0.02 apart, about 0.5.
        assert [layer.target_sparsity for layer in found.layers[::7]] == pytest.approx(
            [0.43 + 0.02 * i for i in range(8)]
        )
        two_of_four = {"method": "mask", "pattern": "2:4"}
        found = plan(
            spec_of(model={"id": "bookworm-7m"}, allocate={**allocate, "beta": 0.1}, prune=two_of_four), examples
        )
        # Kept of 4: 3.4, 3, 2.6, 2.2, 1.8, 1.4, 1, 0.6. The whole parts, at least one, are 14; two more go to the
        # greatest fractions.
        assert [layer.target_sparsity for layer in found.layers[::7]] == [0.25, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 0.75]
        assert found.zeros_after == 5_898_240 // 2

    def test_a_sparsity_that_is_to_be_found(self, examples: Sources) -> None:
        prune = {"method": "mask", "perplexity_ratio": 1.1}
        found = plan(spec_of(model={"id": "bookworm-7m"}, prune=prune, evaluate=[PERPLEXITY]), examples)
        assert found.zeros_after is None
        assert {layer.target_sparsity for layer in found.layers} == {None}
        assert any("trial prunings" in warning for warning in found.warnings)


def test_warns_where_most_of_the_model_is_embeddings(tiny: Path, sources: Sources) -> None:
    warnings = plan(spec_of(evaluate=[PERPLEXITY]), sources).warnings
    # Three blocks of 7,680 prunable weights in a model of 285,920 parameters, half of those removed.
    assert warnings == [
        "only 8% of the parameters can be pruned, the linear layers of the blocks: the whole model ends up 4% zeros"
    ]


@pytest.mark.parametrize(
    ("parts", "error", "field", "message"),
    [
        (
            {"prune": {"method": "mask", "pattern": "5:7"}},
            InvalidSpec,
            "/prune/pattern",
            r"layers\.0\.self_attn\.q_proj: 5:7 needs a number of inputs that 7 divides, not 32",
        ),
        (
            {"calibrate": {"dataset": "calibration.txt", "sequence_length": 129}},
            SequenceTooLong,
            "/calibrate/sequence_length",
            "129 tokens exceed the model's context of 128",
        ),
        (
            {"evaluate": [PERPLEXITY, PERPLEXITY | {"sequence_length": 256}]},
            SequenceTooLong,
            "/evaluate/1/sequence_length",
            "256 tokens exceed",
        ),
        ({"calibrate": {"dataset": "none.txt"}}, DatasetNotFound, "/calibrate/dataset", "no file none.txt"),
        (
            {"evaluate": [PERPLEXITY | {"dataset": "none.txt"}]},
            DatasetNotFound,
            "/evaluate/0/dataset",
            "no file none.txt",
        ),
    ],
)
def test_refuses_as_the_job_would(
    parts: dict[str, Any], error: type[EngineError], field: str, message: str, tiny: Path, sources: Sources
) -> None:
    spec = spec_of(**parts)
    with pytest.raises(error, match=message) as planned:
        plan(spec, sources)
    with pytest.raises(error) as done:
        load(spec, sources)
    assert planned.value.field == done.value.field == field
    assert planned.value.message == done.value.message


def test_prediction_grows_with_what_costs(save_model: SaveModel, sources: Sources) -> None:
    save_model("tiny", LlamaConfig(**SIZES))
    save_model("large", LlamaConfig(**SIZES | {"hidden_size": 256, "intermediate_size": 512}))

    def cost(**parts: Any) -> tuple[int, float]:
        found = plan(spec_of(**parts), sources)
        return found.peak_memory_bytes, found.elapsed_s

    text = {"dataset": "calibration.txt", "sequence_length": 128}
    steps = [
        cost(score={"method": "magnitude"}),
        cost(calibrate=text | {"samples": 16}),
        cost(calibrate=text | {"samples": 256}),
        cost(calibrate=text | {"samples": 256}, model={"id": "large"}),
    ]
    assert steps == sorted(steps)
    assert sorted(step[1] for step in steps) == [step[1] for step in steps]


def test_a_mixture_is_planned_with_its_experts_gone_and_tuned_after(examples: Sources) -> None:
    spec = CompressionSpec.model_validate(
        {
            "model": {"id": "bookworm-moe-8m"},
            "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 128},
            "score": {"method": "reap"},
            "prune": {"method": "experts", "experts": 4},
            "tune": {"method": "full", "dataset": "calibration.txt", "steps": 2},
        }
    )
    found = plan(spec, examples)
    assert found.parameters_after == found.parameters - 6 * 4 * (3 * 192 * 224 + 192)


def test_time_is_that_of_the_experts_that_tokens_are_sent_to(sources: Sources) -> None:
    """With four times as many experts and as many for each token, a job takes little more: it writes more."""
    for count in (8, 32):
        sizes = {"num_experts": count, "moe_intermediate_size": 512, "hidden_size": 128}
        save("qwen3_moe", sources.models_dir / f"of-{count}", **sizes)

    def elapsed(model: str, **calibrate: Any) -> float:
        text = {"dataset": "calibration.txt", "samples": 2048, "sequence_length": 64} | calibrate
        parts = {"calibrate": text, "score": {"method": "reap"}, "prune": {"method": "experts", "sparsity": 0.25}}
        return plan(spec_of(model={"id": model}, evaluate=[PERPLEXITY], **parts), sources).elapsed_s

    few, many = elapsed("of-8"), elapsed("of-32")
    assert many < 1.2 * few
    assert elapsed("of-32", all_experts=True) > 1.2 * many


def test_groups_of_experts_are_planned(examples: Sources) -> None:
    tune = {"method": "group", "dataset": "calibration.txt", "sequence_length": 32}
    spec = spec_of(model={"id": "bookworm-moe-8m"}, tune=tune)
    assert plan(spec, examples).peak_memory_bytes
    with pytest.raises(InvalidSpec, match=r"w2: groups of 48 do not divide its 224 inputs"):
        plan(spec_of(model={"id": "bookworm-moe-8m"}, tune=tune | {"group_size": 48}), examples)


def test_groups_of_fused_projections_are_refused_before_the_job(sources: Sources) -> None:
    save_tiny("phi3", sources.models_dir / "phi3")
    tune = {"method": "group", "dataset": "calibration.txt", "sequence_length": 32}
    with pytest.raises(UnsupportedModel, match="is held in one tensor with others, or transposed") as found:
        plan(spec_of(model={"id": "phi3"}, tune=tune), sources)
    assert found.value.field == "/tune/method"


def test_adapters_keep_copies_of_their_inputs_in_float32_whatever_is_computed_in(examples: Sources) -> None:
    def peak(dtype: str, dropout: float) -> int:
        tune = {"method": "lora", "dataset": "calibration.txt", "steps": 1, "batch": 8, "sequence_length": 256}
        tuned = {"tune": tune | {"dropout": dropout, "distill": None}, "compute": {"dtype": dtype}}
        return plan(spec_of(model={"id": "bookworm-7m"}, **tuned), examples).peak_memory_bytes

    config = json.loads((examples.models_dir / "bookworm-7m/config.json").read_text())
    inputs = 6 * config["hidden_size"] + config["intermediate_size"]  # of q, k, v, o, gate and up; of down
    copied = 2 * 4 * 8 * 256 * config["num_hidden_layers"] * inputs
    for dtype in ("float32", "bfloat16"):
        assert peak(dtype, 0.05) - peak(dtype, 0.0) == copied


def test_a_config_may_name_its_experts_as_other_families_do() -> None:
    """Files of Qwen3-MoE on the hub say `num_experts`, transformers writes `num_local_experts`."""
    entries = json.loads(Qwen3MoeConfig(num_experts=4).to_json_string(use_diff=False))
    experts = {name: entries.pop(name) for name in ("num_experts", "num_local_experts") if name in entries}
    for name in ("num_experts", "num_local_experts"):
        check_config({**entries, "architectures": None, name: next(iter(experts.values()))})
