"""New blocks: where they stand, what they hold, and what is left as it was. B = batch, T = tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    OlmoConfig,
    PretrainedConfig,
    Qwen2Config,
    SmolLM3Config,
)

from tests.helpers.small_models import SIZES, SaveModel, spec_of, walk
from workers.engine.errors import EngineError, InvalidSpec, NumericalFailure
from workers.engine.events import Silent
from workers.engine.methods.grow import lesa
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.registry import methods
from workers.engine.report import NewBlock, Report
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.store.checkpoint import Checkpoint

FOUR = SIZES | {"num_hidden_layers": 4}
QUICK = {"lesa": {"epochs": 1, "width": 8}}
TUNE = {
    "method": "full", "dataset": "calibration.txt", "steps": 4, "batch": 2, "sequence_length": 32, "holdout": 2,
    "learning_rate": 3e-3, "distill": None,
}  # fmt: skip


def grown(method: str = "lesa", layers: int | None = 2, **parts: Any) -> Any:
    """A spec that adds two blocks, unless `parts` say otherwise; those of the method are in `params`."""
    params = {"method": method, **QUICK.get(method, {}), **parts.pop("params", {})}
    if "after" not in params:
        params["layers"] = layers
    return spec_of(**{"prune": None, "score": None, "calibrate": None, "grow": params, **parts})


def job(spec: Any, sources: Sources, folder: Path) -> Report:
    return compress(spec, folder, sources, Silent(), folder / "checkpoint")


def tensors(folder: Path) -> dict[str, Tensor]:
    return dict(load_file(folder / "model.safetensors"))


def of_block(found: dict[str, Tensor], block: int) -> dict[str, Tensor]:
    prefix = f"model.layers.{block}."
    return {name.removeprefix(prefix): tensor for name, tensor in found.items() if name.startswith(prefix)}


@pytest.mark.parametrize(
    ("method", "params", "blocks", "arrangement"),
    [
        ("lesa", {"layers": 3}, 6, [0, 1, 2, 2, 3, 3, 4, 4, 5]),
        ("lesa", {"layers": 16}, 32, [*range(15), *(block for block in range(15, 31) for _ in range(2)), 31]),
        ("lesa", {"layers": 2, "place": "even"}, 5, [0, 1, 1, 2, 3, 3, 4]),
        ("duplicate", {"layers": 16}, 32, [*range(24), *range(8, 32)]),  # SOLAR's 48
        ("duplicate", {"layers": 3}, 4, [0, 1, 2, 0, 1, 2, 3]),
        ("duplicate", {"layers": 2, "identity": True}, 6, [0, 1, 2, 2, 3, 4, 5, 5]),  # LLaMA-Pro's groups
        ("duplicate", {"layers": 2, "place": "end"}, 4, [0, 1, 2, 2, 3, 3]),
    ],
)
def test_stand_where_the_papers_have_them(
    method: str, params: dict[str, Any], blocks: int, arrangement: list[int]
) -> None:
    found = next(each for each in methods("grow") if each.name == method)
    assert found.params.model_validate(params).arrangement(blocks) == arrangement  # type: ignore[attr-defined]


class TestWhatTheyHold:
    def test_of_interpolate_is_the_mean_of_the_neighbours(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        """Of 1 and 4 it is 2.5, in every weight, bias and gain."""
        folder = save_model("tiny", Qwen2Config(**SIZES))  # with biases
        changed = tensors(folder)
        for name, tensor in changed.items():
            if ".layers." in name:
                tensor[:] = {"0": 0.5, "1": 1.0, "2": 4.0}[name.split(".")[2]]
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        job(grown("interpolate", params={"after": [1]}), sources, tmp_path / "out")
        found = tensors(tmp_path / "out/model")
        means = [{float(t.unique()) for t in of_block(found, block).values()} for block in range(4)]
        assert means == [{0.5}, {1.0}, {2.5}, {4.0}]

    def test_of_duplicate_are_copies(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        report = job(grown("duplicate", 1), sources, tmp_path / "out")
        dense, found = tensors(tiny), tensors(tmp_path / "out/model")
        assert report.growth is not None
        assert report.growth.blocks == [NewBlock(block=2, like=1)]
        for index, like in enumerate((0, 1, 1, 2)):
            assert all(torch.equal(t, of_block(dense, like)[name]) for name, t in of_block(found, index).items())

    def test_of_identity_change_nothing_until_they_are_trained(
        self, tiny: Path, sources: Sources, tmp_path: Path
    ) -> None:
        parts = {"params": {"identity": True}, "tune": TUNE | {"train": "new_blocks"}}
        assert grown("duplicate", **parts).edit.arrangement(3) == [0, 0, 1, 2, 2]
        report = job(grown("duplicate", **parts), sources, tmp_path / "out")
        dense, found = tensors(tiny), tensors(tmp_path / "out/model")
        assert report.tune is not None
        assert report.tune.curve[0].holdout_loss == pytest.approx(report.tune.holdout_loss_before)
        new = [of_block(found, block) for block in (1, 4)]
        # The zeros of the layers that add to the hidden states come from no pruning: they are trained.
        assert all(
            block[f"{layer}.weight"].count_nonzero() for block in new for layer in ("self_attn.o_proj", "mlp.down_proj")
        )
        assert report.tune.trained_parameters == sum(t.numel() for block in new for t in block.values())
        for index, like in ((0, 0), (2, 1), (3, 2)):
            assert all(torch.equal(t, of_block(dense, like)[name]) for name, t in of_block(found, index).items())
        assert torch.equal(found["model.norm.weight"], dense["model.norm.weight"])

    def test_of_lesa_are_predicted_and_its_errors_reported(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        save_model("tiny", LlamaConfig(**SIZES), max_shard_size="200KB")
        spec = grown(package={"dtype": "bfloat16"})
        planned, report = plan(spec, sources), job(spec, sources, tmp_path / "out")
        assert planned.bytes_after == sum(tensor.nbytes for tensor in tensors(tmp_path / "out/model").values())
        assert (planned.zeros_after, report.zeros, report.sparsity) == (0, 0, 0)
        assert {runtime.faster for runtime in report.runtimes} == {False}
        found = of_block(tensors(tmp_path / "out/model"), 3)
        assert report.growth is not None
        assert {tried.tensor for tried in report.growth.predictions} == {n for n, t in found.items() if t.dim() == 2}
        assert all(tried.error > 0 and tried.error_of_mean > 0 for tried in report.growth.predictions)
        assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
        page, card = ((tmp_path / "out/model" / name).read_text() for name in ("report.html", "README.md"))
        assert "2 decoder blocks were added to 3: made by lesa." in page
        assert "Blocks 1, 3 of the result are new, made like the dense model&#39;s blocks 0, 1" in page
        assert "parameters added" in page
        assert "Grown / dense" not in page  # nothing was measured
        assert "<code>mlp.down_proj.weight</code>" in page
        assert "depth-up-scaling" in card
        assert "pruned" not in card.lower()


RESULTS: dict[str, PretrainedConfig] = {
    "llama-tied": LlamaConfig(**FOUR, tie_word_embeddings=True),
    "qwen2-mixed": Qwen2Config(
        **FOUR, use_sliding_window=True, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    ),
    "gemma2": Gemma2Config(**FOUR, head_dim=8, sliding_window=8),
    "smollm3": SmolLM3Config(**FOUR, no_rope_layers=[1, 0, 1, 1]),
}  # fmt: skip


class TestResult:
    @pytest.mark.parametrize(
        ("name", "listed"), [("llama-tied", True), ("qwen2-mixed", True), ("gemma2", False), ("smollm3", True)]
    )
    def test_loads_in_transformers_with_every_block_of_its_kind(
        self, name: str, listed: bool, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        """Without its new blocks it computes what the dense model does; with them its cache says the same as none."""
        folder = save_model("tiny", RESULTS[name])
        config = json.loads((folder / "config.json").read_text())
        if not listed:
            config = {key: value for key, value in config.items() if key not in ("layer_types", "no_rope_layers")}
            (folder / "config.json").write_text(json.dumps(config))
        spec = grown("lesa", 2)
        planned, report = plan(spec, sources), job(spec, sources, tmp_path / "out")
        assert max(check.difference for check in report.checks) < 1e-5
        dense = AutoModelForCausalLM.from_pretrained(folder).eval()
        result = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").eval()
        assert len(result.model.layers) == result.config.num_hidden_layers == planned.blocks_after == 6
        assert planned.parameters_after == report.parameters_after == sum(p.numel() for p in result.parameters())
        for entry in ("layer_types", "no_rope_layers"):
            if (before := getattr(dense.config, entry, None)) is not None:
                assert getattr(result.config, entry) == [before[block] for block in (0, 1, 1, 2, 2, 3)]
        ids_BT = torch.randint(3, 4096, (2, 24), generator=torch.Generator().manual_seed(1))
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
        assert torch.equal(result.generate(ids_BT, **options), result.generate(ids_BT, use_cache=False, **options))
        result.save_pretrained(tmp_path / "again")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
        with torch.no_grad():
            assert torch.equal(again(ids_BT).logits, result(ids_BT).logits)
            for block in (2, 4):
                result.model.layers[block].forward = lambda hidden_BTD, *_, **__: hidden_BTD
            torch.testing.assert_close(result(ids_BT).logits, dense(ids_BT).logits)

    def test_can_be_pruned_and_grown_again(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        save_model("tiny", LlamaConfig(**FOUR))
        drop = spec_of(prune={"method": "depth", "layers": 1}, score={"method": "reverse_order"}, calibrate=None)
        job(drop, sources, tmp_path / "fewer")
        (sources.models_dir / "fewer").symlink_to(tmp_path / "fewer/model")
        report = job(grown("lesa", 1, model={"id": "fewer"}), sources, tmp_path / "back")
        assert report.parameters_after == resolve_model(drop.model, sources).parameters


class TestResume:
    def test_a_killed_job_goes_on_to_the_same_bytes(
        self, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec = grown()
        fresh = walk(spec, sources, tmp_path / "fresh")
        trained: list[str] = []
        train = lesa._trained

        def killed(stack: Any, *rest: Any) -> Any:
            if len(trained) == 3:
                raise KeyboardInterrupt
            trained.append(stack.name)
            return train(stack, *rest)

        monkeypatch.setattr(lesa, "_trained", killed)
        with pytest.raises(KeyboardInterrupt):
            walk(spec, sources, tmp_path / "killed")
        before = trained.copy()
        trained.clear()
        monkeypatch.setattr(lesa, "_trained", lambda stack, *rest: trained.append(stack.name) or train(stack, *rest))
        again = walk(spec, sources, tmp_path / "killed")
        assert len(before) == 3
        assert not {*before} & {*trained}
        assert len(before) + len(trained) == 7
        assert again.blocks() == fresh.blocks()

    def test_a_damaged_tensor_is_made_again(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        spec = grown("interpolate")
        fresh = walk(spec, sources, tmp_path / "run")
        folder = tmp_path / "run/checkpoint"
        for path in (*folder.glob("blocks-*"), *folder.glob("new-00001-00000.*")):
            path.write_bytes(b"x" + path.read_bytes()[1:])
        checkpoint = Checkpoint(folder)
        assert walk(spec, sources, tmp_path / "run", checkpoint=checkpoint).blocks() == fresh.blocks()


class TestRefusals:
    @pytest.mark.parametrize(
        ("parts", "field", "code"),
        [
            ({"grow": None}, ("prune",), "prune_or_grow"),
            ({"prune": {"method": "mask", "sparsity": 0.5}}, ("grow",), "prune_or_grow"),
            ({"score": {"method": "wanda"}}, ("score",), "score_unused"),
            ({"allocate": {"method": "owl"}}, ("allocate",), "nothing_to_allocate"),
            ({"refine": {"method": "dsnot"}}, ("refine",), "nothing_to_refine"),
        ],
    )
    def test_stages_that_do_not_go_with_it(self, parts: dict[str, Any], field: tuple[str, ...], code: str) -> None:
        with pytest.raises(ValidationError) as found:
            grown(**parts)
        assert [(error["loc"], error["type"]) for error in found.value.errors()] == [(field, code)]

    def test_training_of_new_blocks_where_there_are_none(self) -> None:
        with pytest.raises(ValidationError) as found:
            spec_of(tune=TUNE | {"train": "new_blocks"})
        assert [(error["loc"], error["type"]) for error in found.value.errors()] == [(("tune",), "no_new_blocks")]

    @pytest.mark.parametrize(
        ("config", "spec", "field", "words"),
        [
            (LlamaConfig(**SIZES), grown("lesa", 3), "/grow/layers", "room for 2"),
            (LlamaConfig(**SIZES | {"num_hidden_layers": 2}), grown("lesa", 1), "/grow/method", "needs 3 blocks"),
            (
                LlamaConfig(**SIZES | {"num_hidden_layers": 1}),
                grown("interpolate", 1),
                "/grow/method",
                "needs 2 blocks",
            ),
            (LlamaConfig(**SIZES), grown("lesa", params={"after": [2]}), "/grow/after", "it has no next one"),
        ],
    )
    def test_by_plan_and_job_alike(
        self, config: PretrainedConfig, spec: Any, field: str, words: str, save_model: SaveModel, sources: Sources,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        save_model("tiny", config)
        for refused in (lambda: plan(spec, sources), lambda: job(spec, sources, tmp_path / "out")):
            with pytest.raises(InvalidSpec, match=words) as found:
                refused()
            assert found.value.field == field
            assert found.value.hint

    def test_blocks_that_count_themselves(self, save_model: SaveModel, sources: Sources) -> None:
        from transformers import DiffLlamaConfig

        save_model("tiny", DiffLlamaConfig(**SIZES))
        with pytest.raises(EngineError, match="compute with their own number") as found:
            plan(grown(), sources)
        assert found.value.field == "/grow"

    def test_values_that_the_type_cannot_hold(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        folder = save_model("tiny", OlmoConfig(**SIZES))  # no gains to be broken first
        found = {name: tensor.half() for name, tensor in tensors(folder).items()}
        for block in range(2):
            found[f"model.layers.{block}.mlp.up_proj.weight"][:] = 60_000.0 * (-1) ** block
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        spec = grown(params={"norm_weight": 0.99, "learning_rate": 1.0})
        with pytest.raises(NumericalFailure, match=r"up_proj\.weight") as error:
            walk(spec, sources, tmp_path / "out")
        assert error.value.field == "/grow/method"

    def test_warns_of_a_teacher_that_is_hardly_surpassed(self, tiny: Path, sources: Sources) -> None:
        distilled = plan(grown(tune={k: v for k, v in TUNE.items() if k != "distill"}), sources)
        assert any("`tune.distill`" in warning for warning in distilled.warnings)
        assert not any("`tune.distill`" in warning for warning in plan(grown(tune=TUNE), sources).warnings)


def test_predictions_count_the_larger_model(save_model: SaveModel, sources: Sources) -> None:
    save_model("tiny", LlamaConfig(**FOUR | {"hidden_size": 256, "intermediate_size": 4096}))
    evaluate = [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32}]
    few, many = (plan(grown("duplicate", n, tune=TUNE, evaluate=evaluate), sources) for n in (1, 4))
    blocks = (many.parameters_after or 0) - (few.parameters_after or 0)
    assert many.peak_memory_bytes - few.peak_memory_bytes > 16 * blocks  # as many are trained more
    assert many.elapsed_s > few.elapsed_s
    learnt = plan(grown("lesa", 1), sources)
    assert learnt.peak_memory_bytes - plan(grown("interpolate", 1), sources).peak_memory_bytes > 8 * 4096**2
