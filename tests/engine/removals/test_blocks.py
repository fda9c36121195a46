"""Dropped decoder blocks: what their scores measure, which go, and what is left.

B = batch, T = tokens, D = hidden size, N = windows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from tests.helpers.small_models import SIZES, SaveModel, Scratch, Walked, load, spec_of, text_of, walk
from workers.engine.errors import InvalidSpec
from workers.engine.model.loaded import load_model, tensors_of
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources


def depth(layers: int = 1, score: str = "block_influence", **params: Any) -> Any:
    return spec_of(prune={"method": "depth", "layers": layers}, score={"method": score} | params)


def scores_of(done: Walked) -> list[float]:
    return [block["layer"][0] for block in done.checkpoint.load_scores()]


def change(folder: Path, changes: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    changes(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def identity(block: int) -> Callable[[dict[str, Tensor]], None]:
    """A block that adds nothing to what it reads."""

    def changes(tensors: dict[str, Tensor]) -> None:
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            tensors[f"model.layers.{block}.{name}.weight"].zero_()

    return changes


def negation(tensors: dict[str, Tensor]) -> None:
    """Every token is the same vector v, and what block 0's attention adds to it is -2 v."""
    v_D = torch.linspace(-1, 1, 32)
    tensors["model.embed_tokens.weight"][:] = v_D
    identity(0)(tensors)
    value, output = (tensors[f"model.layers.0.self_attn.{name}.weight"] for name in ("v_proj", "o_proj"))
    value.zero_()
    read_D = v_D / v_D.square().mean().sqrt()  # as the norm gives it: its product with v_D / 32 is v's root mean square
    value[0] = v_D / (read_D @ v_D)  # the first entry of the first head's value is 1
    output[:, 0] = -2 * v_D


class TestBlockInfluence:
    def test_of_an_identity_is_zero(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        change(tiny, identity(1))
        done = walk(depth(), sources, tmp_path)
        assert scores_of(done)[1] == pytest.approx(0, abs=1e-6)
        assert min(scores_of(done)[::2]) > 1e-4
        assert done.outcome.blocks == [0, 2]

    def test_of_a_negation_is_two(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        change(tiny, negation)
        assert scores_of(walk(depth(), sources, tmp_path))[0] == pytest.approx(2, abs=1e-6)

    @pytest.mark.parametrize("config", [LlamaConfig(**SIZES), Qwen3Config(**SIZES, head_dim=16)])
    def test_is_the_mean_over_tokens_at_the_raw_outputs(
        self, config: PretrainedConfig, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        """By hooks: the last entry of `hidden_states` would be behind the final norm."""
        folder = save_model("tiny", config)
        done = walk(depth(), sources, tmp_path)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        seen: list[float] = []

        def watch(_: Any, args: Any, output: Any) -> None:
            output_BTD = output[0] if isinstance(output, tuple) else output
            seen.append(1 - float(cosine_similarity(args[0], output_BTD, dim=-1).double().mean()))

        for layer in model.model.layers:
            layer.register_forward_hook(watch)
        with torch.no_grad():
            model(text_of(depth(), done.model, sources).windows_NT, use_cache=False)
        assert scores_of(done) == pytest.approx(seen, abs=1e-6)


def losses(model: Any, windows_NT: Tensor) -> float:
    with torch.no_grad():
        return float(
            torch.stack([model(ids[None], labels=ids[None], use_cache=False).loss for ids in windows_NT]).mean()
        )


def without(folder: Path, blocks: set[int]) -> Any:
    """The dense model in memory, in which some blocks hand on what they read; each other keeps its place and mask."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for block in blocks:
        model.model.layers[block].forward = lambda hidden_BTD, *args, **kwargs: hidden_BTD
    return model


class TestLayerPerplexity:
    def test_is_brute_force(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        # Each block must keep its own mask while others are left out.
        config = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2)
        folder = save_model("tiny", config)
        change(folder, identity(1))
        spec = depth(score="layer_perplexity")
        done = walk(spec, sources, tmp_path)
        windows_NT = text_of(spec, done.model, sources).windows_NT
        expected = [math.exp(losses(without(folder, {block}), windows_NT)) for block in range(3)]
        assert scores_of(done) == pytest.approx(expected, rel=1e-5)
        # A block that does nothing is worth what the dense model has.
        assert scores_of(done)[1] == pytest.approx(math.exp(losses(without(folder, set()), windows_NT)), rel=1e-5)

    def test_variants_may_leave_out_any_blocks_in_any_order(
        self, tiny: Path, sources: Sources, scratch: Scratch
    ) -> None:
        spec = depth(score="layer_perplexity")
        model = load(spec, sources)
        text = text_of(spec, model, sources)
        with closing(StreamedLoss(model, text, scratch, keep_path=True)) as streamed:
            for path in ([0, 1, 2], [0, None, 2], [0, 1, 2], [None, None, 2], [None, 1, None], [None] * 3, [0, 1, 2]):
                found = streamed.nll(path, lambda block: tensors_of(model, f"model.layers.{block}"))
                gone = {block for block in range(3) if path[block] is None}
                assert float(found.mean()) == pytest.approx(losses(without(tiny, gone), text.windows_NT), rel=1e-5)


class TestWhatNeedsNoText:
    def test_magnitude_is_the_sum_over_all_tensors(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        dense = load_file(tiny / "model.safetensors")
        for power in (1, 2):
            spec = depth(score="layer_magnitude", power=power, protect_first=0, protect_last=0)
            expected = [0.0] * 3
            for name, tensor in dense.items():
                if ".layers." in name:
                    expected[int(name.split(".")[2])] += float(tensor.double().abs().pow(power).sum())
            assert scores_of(walk(spec, sources, tmp_path / str(power))) == pytest.approx(expected, rel=1e-12)

    def test_reverse_order_drops_from_the_back(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        assert walk(depth(2, "reverse_order"), sources, tmp_path).outcome.blocks == [0]


class TestProtectedEnds:
    def test_never_go(self, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
        folder = save_model("tiny", LlamaConfig(**SIZES | {"num_hidden_layers": 6}))

        def ends_are_worthless(tensors: dict[str, Tensor]) -> None:
            for block in (0, 1, 5):
                identity(block)(tensors)

        change(folder, ends_are_worthless)
        spec = depth(3, "layer_magnitude", protect_first=2, protect_last=1)
        done = walk(spec, sources, tmp_path)
        assert done.outcome.blocks == [0, 1, 5]
        assert [math.isinf(score) for score in scores_of(done)] == [True, True, False, False, False, True]
        assert walk(
            depth(3, "layer_magnitude", protect_first=0, protect_last=0), sources, tmp_path / "open"
        ).outcome.blocks == [2, 3, 4]

    @pytest.mark.parametrize(
        ("layers", "params", "message"),
        [
            (1, {}, "1 of 3 blocks are to go, and 6 must stay"),  # the published defaults are for deeper models
            (2, {"protect_first": 2, "protect_last": 0}, "2 of 3 blocks are to go, and 2 must stay"),
            (3, {"protect_first": 0, "protect_last": 0}, "3 of 3 blocks are to go, and 1 must stay"),
            (9, {"protect_first": 0, "protect_last": 0}, "9 of 3 blocks are to go, and 1 must stay"),
        ],
    )
    def test_too_many_are_refused_by_plan_and_job(
        self, layers: int, params: dict[str, int], message: str, tiny: Path, sources: Sources, tmp_path: Path
    ) -> None:
        spec = depth(layers, "layer_magnitude", **params)
        for refused in (lambda: plan(spec, sources), lambda: walk(spec, sources, tmp_path)):
            with pytest.raises(InvalidSpec, match=message) as error:
                refused()
            assert error.value.field == "/prune"
            assert "drop fewer blocks" in error.value.hint


MIXED = Qwen2Config(
    **SIZES | {"num_hidden_layers": 4}, use_sliding_window=True, sliding_window=8,
    layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
)  # fmt: skip
FOUR = SIZES | {"num_hidden_layers": 4}
RESULTS: dict[str, PretrainedConfig] = {
    "llama-tied": LlamaConfig(**FOUR, tie_word_embeddings=True),
    "qwen2-mixed": MIXED,
    "qwen3": Qwen3Config(**FOUR, head_dim=16),
    # Every other block slides; its older configs leave that to transformers, by the blocks' numbers.
    "gemma2": Gemma2Config(**FOUR, head_dim=8, sliding_window=8),
    "smollm3": SmolLM3Config(**FOUR, no_rope_layers=[1, 0, 1, 1]),
}


class TestResult:
    def assembled(self, folder: Path, sources: Sources, tmp_path: Path, gone: list[int]) -> Walked:
        """The result of dropping some blocks, which are made to be the ones that do nothing."""

        def worthless(tensors: dict[str, Tensor]) -> None:
            for name, tensor in tensors.items():
                if any(f".layers.{block}." in name for block in gone):
                    tensor *= 1e-3

        change(folder, worthless)
        spec = depth(len(gone), "layer_magnitude", protect_first=0, protect_last=0)
        done = walk(spec, sources, tmp_path)
        assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
        assert done.outcome.blocks == [block for block in range(4) if block not in gone]
        return done

    @pytest.mark.parametrize("listed", [True, False])
    @pytest.mark.parametrize("name", RESULTS)
    def test_computes_what_the_blocks_that_stay_compute(
        self, name: str, listed: bool, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", RESULTS[name])
        config = json.loads((folder / "config.json").read_text())
        if not listed:
            if name == "qwen2-mixed":  # the old way to say that blocks from the second one on slide
                config["max_window_layers"] = 2
            config = {key: value for key, value in config.items() if key not in ("layer_types", "no_rope_layers")}
            (folder / "config.json").write_text(json.dumps(config))
        self.assembled(folder, sources, tmp_path, [0])
        ids_BT = torch.randint(3, 4096, (2, 24), generator=torch.Generator().manual_seed(1))
        result = load_model(tmp_path / "model", torch.device("cpu"), torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(result(ids_BT).logits, without(folder, {0})(ids_BT).logits)
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 2}
        assert torch.equal(result.generate(ids_BT, **options), result.generate(ids_BT, use_cache=False, **options))
        result.save_pretrained(tmp_path / "again")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
        with torch.no_grad():
            assert torch.equal(again(ids_BT).logits, result(ids_BT).logits)

    def test_blocks_keep_their_kind_under_new_numbers(
        self, save_model: SaveModel, sources: Sources, tmp_path: Path
    ) -> None:
        folder = save_model("tiny", MIXED)
        self.assembled(folder, sources, tmp_path, [0, 2])
        before = json.loads((folder / "config.json").read_text())
        after = json.loads((tmp_path / "model/config.json").read_text())
        assert after["num_hidden_layers"] == 2
        assert after["layer_types"] == ["full_attention", "full_attention"]
        changed = {key for key in before if after.get(key) != before[key]}
        assert changed == {"num_hidden_layers", "layer_types"}
        assert set(after) == set(before)
        dense, left = load_file(folder / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
        expected = {name: tensor for name, tensor in dense.items() if ".layers." not in name}
        for new, old in enumerate((1, 3)):
            for name, tensor in dense.items():
                if f".layers.{old}." in name:
                    expected[name.replace(f".layers.{old}.", f".layers.{new}.")] = tensor
        assert left.keys() == expected.keys()
        assert all(torch.equal(left[name], expected[name]) for name in expected)

    def test_nothing_to_drop_is_the_dense_model(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        spec = spec_of(prune={"method": "depth", "sparsity": 0.1}, score={"method": "reverse_order"})
        done = walk(spec, sources, tmp_path)
        assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
        dense, left = load_file(tiny / "model.safetensors"), load_file(tmp_path / "model/model.safetensors")
        assert all(torch.equal(left[name], dense[name]) for name in dense)
        assert json.loads((tiny / "config.json").read_text()) == json.loads(
            (tmp_path / "model/config.json").read_text()
        )
        assert load(spec, sources).architecture.blocks == 3
