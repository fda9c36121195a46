"""Heads, channels and blocks through the stages: scores, caches, retries, what a plan says and a job then does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CohereConfig, LlamaConfig, Olmo2Config

from tests.helpers.families import FAMILIES, WIDE
from tests.helpers.four_blocks import facts_of
from tests.helpers.small_models import SIZES, SaveModel, Walked, block_tensors, load, spec_of, walk
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.files.safetensors_bytes import read_header
from workers.engine.methods.allocate import ranking
from workers.engine.methods.allocate.ranking import RankingParams
from workers.engine.model.loaded import load_model
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources

STRUCTURED = {"method": "structured", "sparsity": 0.35}
PLAIN = STRUCTURED | {"compensate": False}
DEPTH = {"method": "depth", "layers": 1}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}


def no_text(score: str = "magnitude", **parts: Any) -> Any:
    return spec_of(score={"method": score}, calibrate=None, prune=PLAIN | parts.pop("prune", {}), **parts)


class TestScores:
    def test_of_weights_are_added_up_over_a_unit(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        folder = save_model("tiny", FAMILIES["qwen2"])
        done = walk(no_text(), sources, tmp_path)
        dense = load_file(folder / "model.safetensors")

        def weight(name: str) -> Any:
            return dense[f"model.layers.1.{name}.weight"].double().abs()

        # Head 2 of three: query heads 4 and 5 of width 8. Biases do not count.
        head = weight("self_attn.q_proj")[32:48].sum() + weight("self_attn.o_proj")[:, 32:48].sum()
        head += weight("self_attn.k_proj")[16:24].sum() + weight("self_attn.v_proj")[16:24].sum()
        channel = (
            weight("mlp.gate_proj")[7].sum() + weight("mlp.up_proj")[7].sum() + weight("mlp.down_proj")[:, 7].sum()
        )
        scores = done.checkpoint.load_scores()[1]
        assert scores["head"][2] == pytest.approx(float(head), rel=1e-6)
        assert scores["channel"][7] == pytest.approx(float(channel), rel=1e-6)

    def test_the_lowest_units_go(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        folder = save_model("tiny", FAMILIES["llama"])
        done = walk(no_text(), sources, tmp_path)
        dense = load_file(folder / "model.safetensors")
        for block in range(3):
            scores = done.checkpoint.load_scores()[block]
            cut = block_tensors(done.checkpoint, block)
            for kind, tensor, width in (("head", "self_attn.k_proj", 8), ("channel", "mlp.up_proj", 1)):
                name = f"model.layers.{block}.{tensor}.weight"
                kept = sorted(
                    sorted(range(len(scores[kind])), key=scores[kind].__getitem__)[-len(cut[name]) // width :]
                )
                rows = dense[name].unflatten(0, (-1, width))[kept].flatten(0, 1)
                assert torch.equal(cut[name], rows)
                assert len(cut[name]) < len(dense[name])

    def test_measures_are_shared_between_jobs_that_ask_the_same(
        self, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = spec_of(score={"method": "saap", "stability": 1}, prune=STRUCTURED)
        first = walk(spec, sources, tmp_path / "first", cache=tmp_path / "cache")

        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("measured again")

        monkeypatch.setattr("workers.engine.removals.unit_scores.gradients", fail)
        again = walk(spec, sources, tmp_path / "again", cache=tmp_path / "cache")
        assert again.blocks() == first.blocks()
        text = {"dataset": "heldout.txt", "samples": 8, "sequence_length": 32}
        other = spec_of(score={"method": "saap"}, prune=STRUCTURED, calibrate=text)
        with pytest.raises(AssertionError, match="measured again"):
            walk(other, sources, tmp_path / "other", cache=tmp_path / "cache")

    def test_what_was_measured_of_blocks_is_not_taken_for_units(
        self, tiny: Path, sources: Sources, tmp_path: Path
    ) -> None:
        cache = tmp_path / "cache"
        random = {"method": "random"}
        walk(spec_of(score=random, prune=DEPTH), sources, tmp_path / "depth", cache=cache)
        found = walk(spec_of(score=random, prune=STRUCTURED), sources, tmp_path / "units", cache=cache)
        assert found.blocks() == walk(spec_of(score=random, prune=STRUCTURED), sources, tmp_path / "fresh").blocks()

    @pytest.mark.parametrize("prune", [STRUCTURED, DEPTH], ids=["structured", "depth"])
    def test_a_retry_does_not_score_again(
        self, prune: Any, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        score = {"method": "taylor"} if prune is STRUCTURED else {"method": "layer_taylor", **OPEN}
        spec = spec_of(score=score, prune=prune)
        first = walk(spec, sources, tmp_path)
        expected = first.blocks()
        for file in first.checkpoint.directory.glob("blocks-*"):
            file.unlink()

        def fail(*_: Any, **__: Any) -> None:
            raise AssertionError("scored again")

        monkeypatch.setattr("workers.engine.removals.unit_scores.gradients", fail)
        for hidden in first.checkpoint.directory.glob("hidden-*"):
            hidden.unlink()
        assert walk(spec, sources, tmp_path).blocks() == expected
        with pytest.raises(AssertionError, match="scored again"):
            walk(spec, sources, tmp_path / "elsewhere")


OPEN = {"protect_first": 0, "protect_last": 0}


class TestRanking:
    def test_scores_of_what_stays_do_not_matter(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        """Where only channels go, heads that are worth nothing in one block must not cost it channels."""
        folder = save_model("tiny", FAMILIES["llama"])
        parts: Any = {"prune": {"units": ["channel"], "sparsity": 0.3}, "allocate": {"method": "ranking"}}
        usual = walk(no_text(**parts), sources, tmp_path / "usual").outcome
        tensors = load_file(folder / "model.safetensors")
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            tensors[f"model.layers.1.self_attn.{name}.weight"] *= 1e-3
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        found = walk(no_text(**parts), sources, tmp_path / "found").outcome
        assert found.shapes == usual.shapes
        assert not found.uniform

    def test_leaves_one_of_each_however_much_may_go(self) -> None:
        found = ranking.allocate(facts_of(), 0.79, RankingParams(most=1))
        heads, channels = (
            sorted({share for name, share in found.items() if part in name}) for part in (".mlp.", "attn")
        )
        assert 0.9 < max(heads + channels) < 1
        with pytest.raises(ValidationError, match="greater than 0"):
            RankingParams(most=0)

    def test_its_cap_is_kept_and_what_it_leaves_no_room_for_is_refused(self) -> None:
        # A tenth of 20 channels and of three heads: two channels and no head a block, 96 of 2112 parameters.
        capped = ranking.allocate(facts_of(), 96 / 2112, RankingParams(most=0.1))
        assert {round(share, 9) for share in capped.values()} == {0.0, 0.1}
        with pytest.raises(InvalidSpec, match=r"`most` of 0\.1 lets 11\.4% of what is asked for go") as error:
            ranking.allocate(facts_of(), 0.4, RankingParams(most=0.1))
        assert (error.value.field, bool(error.value.hint)) == ("/allocate/most", True)

    def test_what_is_worth_little_goes_wherever_it_is(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", FAMILIES["llama"])
        tensors = load_file(folder / "model.safetensors")
        for name in tensors:
            if "layers.1.mlp" in name:
                tensors[name] *= 1e-3
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        found = walk(no_text(allocate={"method": "ranking"}, prune={"sparsity": 0.2}), sources, tmp_path).outcome
        # At most 0.8 of 48 channels: 38 are worth less than any elsewhere.
        assert found.shapes[1][1] <= 10
        assert min(found.shapes[0][1], found.shapes[2][1]) > 30


MODELS = {"qwen2": FAMILIES["qwen2"], "tied": FAMILIES["llama-tied"]}
PLANNED: dict[str, dict[str, Any]] = {
    "uniform": {"prune": PLAIN},
    "compensated": {"prune": STRUCTURED},
    "multiple": {"prune": PLAIN | {"channel_multiple": 16}},
    "heads": {"prune": PLAIN | {"units": ["head"], "sparsity": 0.2}},
    "channels": {"prune": PLAIN | {"units": ["channel"], "sparsity": 0.3}},
    "protected": {"prune": PLAIN | {"protect_first": 1, "channel_multiple": 20}},
    "nothing": {"prune": PLAIN | {"sparsity": 0}},
    "bfloat16": {"prune": PLAIN, "package": {"dtype": "bfloat16"}},
    "depth": {"prune": DEPTH, "score": {"method": "reverse_order"}},
    "depth-fraction": {"prune": {"method": "depth", "sparsity": 0.6}, "score": {"method": "random"}},
    "depth-float16": {"prune": DEPTH, "score": {"method": "reverse_order"}, "package": {"dtype": "float16"}},
}


def written(done: Walked, spec: Any, folder: Path) -> tuple[int, int]:
    """Parameters and weight bytes of the files of the result."""
    assemble(spec, done.model, done.outcome, done.checkpoint, folder)
    facts = [piece.facts for file in folder.glob("*.safetensors") for piece in read_header(file).values()]
    return sum(f.parameters for f in facts), sum(f.bytes for f in facts)


class TestPlan:
    @pytest.mark.parametrize("model", MODELS)
    @pytest.mark.parametrize("case", PLANNED)
    def test_says_what_the_job_writes(
        self, case: str, model: str, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        save_model("tiny", MODELS[model])
        spec = spec_of(**{"score": {"method": "magnitude"}} | PLANNED[case])
        found = plan(spec, sources)
        assert (found.parameters_after, found.bytes_after) == written(
            walk(spec, sources, tmp_path), spec, tmp_path / "m"
        )
        assert found.zeros_after == 0
        loaded = load_model(tmp_path / "m", torch.device("cpu"), torch.float32)
        assert sum(parameter.numel() for parameter in loaded.parameters()) == found.parameters_after

    def test_of_a_model_that_stores_its_tied_head(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", MODELS["tied"])
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        spec = no_text()
        found = plan(spec, sources)
        parameters, size = written(walk(spec, sources, tmp_path), spec, tmp_path / "m")
        assert found.parameters_after == parameters - 4096 * 48
        assert found.bytes_after == size

    @pytest.mark.parametrize("allocate", ["ranking", "owl", "alpha_pruning", "dlp"])
    def test_does_not_say_what_only_the_job_knows(self, allocate: str, tiny: Path, sources: Sources) -> None:
        found = plan(spec_of(prune=STRUCTURED, allocate={"method": allocate}), sources)
        assert (found.parameters_after, found.bytes_after, found.zeros_after) == (None, None, 0)
        assert {layer.target_sparsity for layer in found.layers} == {None}
        assert any("measures" in warning and "modelling file" in warning for warning in found.warnings)
        assert all(runtime.loads and "trust" in runtime.note for runtime in found.runtimes)

    def test_does_not_say_which_blocks_go(self, tiny: Path, sources: Sources) -> None:
        prune = {"method": "depth", "sparsity": 0.3}
        found = plan(spec_of(prune=prune, score={"method": "block_influence"}), sources)
        assert {layer.target_sparsity for layer in found.layers} == {None}

    def test_runtimes(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", FAMILIES["llama"])

        def need_code(**prune: Any) -> list[bool]:
            found = plan(no_text(prune=prune), sources)
            assert loads(found) == {"transformers": True, "vLLM": True}
            return ["trust" in runtime.note for runtime in found.runtimes]

        assert need_code() == [False, False]
        assert need_code(protect_first=1) == [True, True]
        depth = plan(spec_of(prune=DEPTH, score={"method": "reverse_order"}), sources)
        assert loads(depth) == {"transformers": True, "vLLM": True}
        assert all(runtime.faster for runtime in depth.runtimes)
        assert "fewer layers" in depth.runtimes[0].note

    @pytest.mark.parametrize(
        ("prune", "words"),
        [
            ({"units": ["head"], "sparsity": 0.3}, "of the blocks' parameters will be removed, not 30.0%"),
            ({"channel_multiple": 48}, "of the blocks' parameters will be removed, not 35.0%"),
            ({"method": "depth", "sparsity": 0.25}, "33.3% of the blocks' parameters will be removed, not 25.0%"),
        ],
    )
    def test_warns_where_whole_units_miss_the_target(
        self, prune: Any, words: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", FAMILIES["llama"])
        parts = {"score": {"method": "random"}, "prune": prune if "method" in prune else PLAIN | prune}
        assert any(words in warning for warning in plan(spec_of(**parts), sources).warnings)


def loads(found: Any) -> dict[str, bool]:
    return {runtime.runtime: runtime.loads for runtime in found.runtimes}


class TestRefused:
    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ({"prune": {"method": "mask", "sparsity": 0.5}, "score": {"method": "taylor"}},
             "prune `mask` removes weights, and score `taylor` is about heads, channels, hidden dimensions, "
             "layers and channels of experts: "),
            ({"prune": STRUCTURED, "score": {"method": "block_influence"}},
             "prune `structured` removes heads and channels, and score `block_influence` is about layers: "),
            ({"prune": DEPTH}, "prune `depth` removes layers, and score `wanda` is about weights"),
            ({"prune": DEPTH, "score": None}, "prune `depth` needs `score`"),
            ({"prune": STRUCTURED, "score": None}, "prune `structured` needs `score`"),
            ({"prune": DEPTH, "score": {"method": "random"}, "allocate": {"method": "ranking"}},
             "prune `depth` has nothing to spread over blocks: leave `allocate` out"),
            ({"prune": {"method": "experts", "experts": 4}, "score": {"method": "reap"},
              "allocate": {"method": "ranking"}},
             "prune `experts` has one number of experts for all blocks, as the configs of most families do: leave"),
            ({"prune": STRUCTURED, "allocate": {"method": "search"}},
             "allocate `search` tries out prunings of single weights: use `uniform`, `ranking`"),
            ({"allocate": {"method": "ranking"}},
             "allocate `ranking` ranks heads and channels: use prune `structured`"),
            ({"prune": STRUCTURED, "refine": {"method": "dsnot"}},
             "prune `structured` leaves no zeros to move: leave `refine` out"),
            ({"prune": DEPTH, "score": {"method": "random"}, "refine": {"method": "dsnot"}},
             "prune `depth` leaves no zeros to move"),
            ({"prune": STRUCTURED, "score": {"method": "magnitude"}, "allocate": {"method": "ranking"},
              "calibrate": None}, "^prune `structured` looks at activations: add `calibrate`"),
            ({"prune": PLAIN, "score": {"method": "taylor"}, "calibrate": None},
             "^score `taylor` looks at activations"),
            ({"prune": STRUCTURED, "score": {"method": "saap"}, "calibrate": {"dataset": "a.txt", "samples": 4}},
             "`saap` compares 5 parts of the calibration text: `calibrate.samples` must be at least as many"),
            ({"prune": DEPTH | {"sparsity": 0.5}, "score": {"method": "random"}}, "give one of `layers`"),
        ],
    )  # fmt: skip
    def test_by_the_spec(self, parts: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError) as error:
            spec_of(**parts)
        (found,) = error.value.errors()
        assert message.strip("^") in found["msg"]
        assert not message.startswith("^") or found["msg"].startswith(message[1:])

    @pytest.mark.parametrize(
        ("parts", "field", "message"),
        [
            (
                {"sparsity": 0.95},
                "/prune/units",
                "3 blocks cannot lose 95.0% of their parameters in heads and channels, only",
            ),
            (
                {"sparsity": 0.5, "units": ["head"]},
                "/prune/units",
                "cannot lose 50.0% of their parameters in heads, only 33.3%: one unit of each kind stays",
            ),
            ({"protect_first": 2}, "/prune/sparsity", "1 blocks are not protected: too few to lose 35% of all"),
            ({"protect_first": 9}, "/prune/sparsity", "0 blocks are not protected"),
            (
                {"channel_multiple": 64},
                "/prune/channel_multiple",
                "block 0 has 48 channels: no multiple of 64 can stay",
            ),
        ],
    )
    def test_by_the_models_sizes(
        self, parts: Any, field: str, message: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", FAMILIES["llama"])
        self.both(no_text(prune=parts), sources, InvalidSpec, field, message)

    @pytest.mark.parametrize(
        ("model", "parts", "field", "message"),
        [
            # Five of six heads do not divide 48, and a Mistral, whose need not, has no biases.
            (
                LlamaConfig(**WIDE | {"num_key_value_heads": 6}, attention_bias=True),
                {"prune": {"sparsity": 0.12}},
                "/prune/units",
                "5 query heads do not divide the hidden size of 48",
            ),
            (
                CohereConfig(**SIZES),
                {"prune": {"protect_first": 1}},
                "/allocate",
                "cohere: there is no modelling file for blocks of different widths",
            ),
            (
                CohereConfig(**SIZES),
                {"allocate": {"method": "ranking"}},
                "/allocate",
                "cohere: there is no modelling file for blocks of different widths",
            ),
            (Olmo2Config(**SIZES), {}, "/prune/units", "norm over all heads"),
        ],
    )
    def test_by_what_its_config_can_say(
        self, model: Any, parts: Any, field: str, message: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", model)
        self.both(no_text(**parts), sources, UnsupportedModel, field, message)

    def both(self, spec: Any, sources: Sources, kind: Any, field: str, message: str) -> None:
        for refused in (plan, load):
            with pytest.raises(kind, match=message) as error:
                refused(spec, sources)
            assert error.value.field == field
            assert error.value.hint

    def test_before_the_walk_where_the_job_measures_widths(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", LlamaConfig(**WIDE | {"num_key_value_heads": 6}, attention_bias=True))
        tensors = load_file(folder / "model.safetensors")
        for name in ("q_proj", "k_proj", "v_proj"):  # of each block the first head is worth least
            for block in range(3):
                tensors[f"model.layers.{block}.self_attn.{name}.weight"][:8] *= 1e-3
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        spec = no_text(allocate={"method": "ranking"}, prune={"sparsity": 3.2 * 1536 / 48384, "units": ["head"]})
        plan(spec, sources)
        with pytest.raises(UnsupportedModel, match="5 query heads do not divide the hidden size of 48"):
            walk(spec, sources, tmp_path)
        assert not list((tmp_path / "checkpoint").glob("blocks-*"))

    def test_a_result_of_different_widths_is_not_pruned_again(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", FAMILIES["llama"])
        spec = no_text(prune={"protect_first": 1})
        written(walk(spec, sources, tmp_path), spec, sources.models_dir / "narrow")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (sources.models_dir / "narrow" / name).write_bytes((folder / name).read_bytes())
        again = spec_of(model={"id": "narrow"}, score={"method": "magnitude"})
        self.both(again, sources, UnsupportedModel, "/model/id", "blocks differ in width")


class TestWidths:
    def test_protected_blocks_lose_nothing(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        # 50 channels are no multiple of 20: that must not cost the protected block ten.
        save_model("tiny", LlamaConfig(**WIDE | {"intermediate_size": 50}))
        prune = {"protect_first": 1, "protect_last": 1, "channel_multiple": 20, "sparsity": 0.2}
        shapes = walk(no_text(prune=prune), sources, tmp_path).outcome.shapes
        assert shapes[0] == shapes[2] == (3, 50)
        assert shapes[1][1] in (20, 40)

    def test_a_llama_of_five_heads_is_a_mistral(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
        folder = save_model("tiny", LlamaConfig(**WIDE | {"num_key_value_heads": 6}, rope_parameters=rope))
        spec = no_text(prune={"sparsity": 0.08, "units": ["head"]})
        written(walk(spec, sources, tmp_path), spec, tmp_path / "m")
        config = json.loads((tmp_path / "m/config.json").read_text())
        assert (config["model_type"], config["num_attention_heads"], config["head_dim"]) == ("mistral", 5, 8)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
        dense = AutoModelForCausalLM.from_pretrained(folder).eval()
        for block, cut in zip(dense.model.layers, loaded.model.layers, strict=True):
            rows = block.self_attn.v_proj.weight.unflatten(0, (6, 8))
            kept = [torch.equal(part, row) for part in cut.self_attn.v_proj.weight.split(8) for row in rows]
            gone = [u for u in range(6) if not any(kept[u::6])]
            assert len(gone) == 1
            block.self_attn.o_proj.weight.data[:, gone[0] * 8 : gone[0] * 8 + 8] = 0
        ids_BT = torch.randint(3, 4096, (2, 100), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            torch.testing.assert_close(loaded(ids_BT).logits, dense(ids_BT).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "parts",
    [
        {"prune": STRUCTURED | {"protect_last": 1}, "score": {"method": "taylor"}},
        {"prune": STRUCTURED, "score": {"method": "wanda"}, "allocate": {"method": "ranking"}},
        {"prune": DEPTH, "score": {"method": "layer_perplexity"}},
    ],
    ids=["per-block", "ranking", "depth"],
)
def test_the_report_counts_what_is_gone(parts: Any, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
    """And measures the result whole or block by block alike."""
    save_model("tiny", FAMILIES["llama"])
    metrics = []
    for name, budget in (("whole", None), ("streamed", 1)):
        spec = spec_of(**parts, evaluate=[{"method": "size"}, PERPLEXITY | {"batch_size": 64}])
        if budget:
            budget = plan(spec, sources).peak_memory_bytes - 1
            spec = spec_of(
                **parts,
                evaluate=[{"method": "size"}, PERPLEXITY | {"batch_size": 64}],
                compute={"memory_budget": budget},
            )
        report = compress(spec, tmp_path / name, sources, Silent(), tmp_path / name / "checkpoint")
        metrics.append(report.metrics)
        header = read_header(tmp_path / name / "model/model.safetensors")
        total = sum(piece.facts.parameters for piece in header.values())
        assert report.parameters_after == total
        removed = report.parameters - total
        linear = round(report.sparsity * report.prunable_parameters)
        assert 0 <= removed - linear <= 2 * 48  # the norms of a dropped block
        assert report.zeros == 0
        assert report.sparsity == pytest.approx(report.target_sparsity, abs=0.02)
        if "depth" not in spec.prune.method:
            stored = {layer.name: header[f"{layer.name}.weight"].facts.shape for layer in report.layers}
            assert {layer.name: layer.shape for layer in report.layers} == stored
        else:
            assert sum(layer.shape == (0, 0) for layer in report.layers) == 7
    for one, other in zip(*metrics, strict=True):
        assert other.pruned == pytest.approx(one.pruned, rel=1e-5)
    assert metrics[0][-1].pruned != metrics[0][-1].dense


def test_prediction_grows_with_what_scores_cost(save_model: SaveModel, sources: Sources) -> None:
    save_model("tiny", LlamaConfig(**SIZES | {"hidden_size": 512, "intermediate_size": 2048}))

    def cost(score: str, prune: Any = PLAIN, **params: Any) -> tuple[int, float]:
        found = plan(spec_of(score={"method": score} | params, prune=prune), sources)
        return found.peak_memory_bytes, found.elapsed_s

    steps = [cost("magnitude"), cost("taylor"), cost("saap", parts=2), cost("saap", parts=8)]
    assert steps == sorted(steps)
    assert len({memory for memory, _ in steps}) == 4
    times = [
        cost(score, DEPTH, **params)[1]
        for score, params in (
            ("reverse_order", {}), ("block_influence", {}), ("layer_perplexity", {}), ("layer_taylor", OPEN)
        )
    ]  # fmt: skip
    assert times == sorted(set(times))
