"""The block walk against the same thing done the slow and obvious way on the whole model.

N = windows, T = tokens of a window, O = outputs, I = inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.helpers.small_models import (
    SIZES,
    SaveModel,
    Scratch,
    block_tensors,
    entering,
    load,
    spec_of,
    text_of,
    walk,
)
from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.params import Stat
from workers.engine.errors import NumericalFailure, UnsupportedModel
from workers.engine.model.input_statistics import collect
from workers.engine.model.loaded import tensors_of
from workers.engine.registry import method_of
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources

FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "llama-tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=16),
    "qwen2": Qwen2Config(**SIZES),
    # The last block attends within a window, the others to everything: each block must get its own mask.
    "qwen2-mixed": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}


STAGES = ["q_proj k_proj v_proj", "o_proj", "gate_proj up_proj", "down_proj"]


def naive_wanda(folder: Path, windows_NT: Tensor, sparsity: float, refresh: str) -> dict[str, Tensor]:
    """Whole model in memory, one window at a time, a full forward pass per block or projection, masks by sorting."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for block in model.model.layers:
        for stage in [" ".join(STAGES)] if refresh == "block" else STAGES:
            linears = {name: module for name, module in block.named_modules() if name.split(".")[-1] in stage.split()}
            squares: dict[str, list[Tensor]] = {name: [] for name in linears}

            def watch(name: str, squares: dict[str, list[Tensor]] = squares) -> Callable[..., None]:
                return lambda module, args: squares[name].append(args[0][0].square())

            handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
            with torch.no_grad():
                for ids_T in windows_NT:
                    model(ids_T[None], use_cache=False)
            for handle in handles:
                handle.remove()
            for name, module in linears.items():
                score_OI = module.weight.abs() * torch.cat(squares[name]).mean(dim=0).sqrt()
                lowest = score_OI.argsort(dim=1, stable=True)[:, : int(sparsity * score_OI.shape[1])]
                module.weight.data.scatter_(1, lowest, 0)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def calibrate(**parts: Any) -> dict[str, Any]:
    return {"calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32} | parts}


@pytest.mark.parametrize("refresh", ["block", "projection"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_naive_loop(
    family: str, refresh: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", FAMILIES[family])
    spec = spec_of(**calibrate(refresh=refresh))
    done = walk(spec, sources, tmp_path)
    assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
    windows_NT = text_of(spec, done.model, sources).windows_NT
    expected = naive_wanda(folder, windows_NT, 0.5, refresh)

    pruned = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    assert pruned.keys() == expected.keys()
    differing = sum(int((pruned[name] != expected[name]).sum()) for name in expected)
    # The batched sums round differently from the naive ones: a near tie in 30,000 may fall the other way.
    assert differing <= 4
    other = naive_wanda(folder, windows_NT, 0.5, "block" if refresh == "projection" else "projection")
    assert sum(int((other[name] != expected[name]).sum()) for name in expected) > 40, "the modes must differ"


def test_last_smaller_batch_is_walked_too(tiny: Path, sources: Sources, scratch: Scratch) -> None:
    spec = spec_of()
    model = replace(load(spec, sources), batch_tokens=3 * 32)
    text = text_of(spec, model, sources)
    way, inputs = entering(model, text, scratch)
    assert [(batch.start, batch.stop) for batch in way.batches] == [(0, 3), (3, 6), (6, 8)]
    dense = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    with torch.no_grad():
        states = dense(text.windows_NT, output_hidden_states=True, use_cache=False).hidden_states
    with way:
        torch.testing.assert_close(inputs.read(slice(0, 8)), states[0])
        outputs = way.through(0, inputs, tensors_of(model, "model.layers.0"))
        torch.testing.assert_close(outputs.read(slice(0, 8)), states[1])
        torch.testing.assert_close(outputs.read(slice(5, 7)), states[1][5:7])
    assert all(parameter.is_meta for parameter in model.skeleton.parameters()), "a block must leave memory after use"


def test_a_score_without_needs_reads_no_text(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    (sources.data_dir / "calibration.txt").unlink()
    spec = spec_of(score={"method": "magnitude"}, calibrate=None)
    checkpoint = walk(spec, sources, tmp_path).checkpoint
    assert not list(checkpoint.directory.glob("hidden-*"))
    weight_OI = block_tensors(checkpoint, 1)["model.layers.1.mlp.up_proj.weight"]
    dense_OI = load_file(tiny / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert int((weight_OI == 0).sum()) == weight_OI.numel() // 2
    assert torch.equal(weight_OI[weight_OI != 0], dense_OI[weight_OI != 0])
    assert weight_OI[weight_OI != 0].abs().min() >= dense_OI[weight_OI == 0].abs().max()


@pytest.mark.parametrize("kept", [{"sparsity": 0.37}, {"pattern": "2:4"}, {"pattern": "1:4"}])
def test_reported_zeros_are_the_files_zeros(kept: dict[str, Any], tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec = spec_of(prune={"method": "mask"} | kept)
    done = walk(spec, sources, tmp_path)
    reports = {r.name: r for r in done.reports(tmp_path / "model")}
    assert len(reports) == 3 * 7
    with safe_open(tmp_path / "model/model.safetensors", framework="pt") as stored:
        for name, report in reports.items():
            zeros = int((stored.get_tensor(f"{name}.weight") == 0).sum())
            assert report.zeros == zeros == spec.prune.removed(report.shape, spec.prune.target, "row")


def test_refined_zeros_move_within_their_groups(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    parts = {"prune": {"method": "mask", "pattern": "2:4"}}
    plain = walk(spec_of(**parts), sources, tmp_path / "plain").checkpoint
    moved = walk(spec_of(**parts, refine={"method": "dsnot"}), sources, tmp_path / "moved").checkpoint
    before, after = block_tensors(plain, 0), block_tensors(moved, 0)
    dense = load_file(tiny / "model.safetensors")
    names = [name for name in before if before[name].dim() == 2]
    assert all(((after[name] != 0).reshape(-1, 4).sum(dim=1) == 2).all() for name in names)
    assert all(torch.equal(after[name], dense[name] * (after[name] != 0)) for name in names)
    assert sum(int(((after[name] != 0) & (before[name] == 0)).sum()) for name in names) > 10


@pytest.mark.parametrize("refresh", ["block", "projection"])
def test_pruners_see_what_they_need_and_whole_streams(
    refresh: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dense block's inputs only where they differ: behind the first stream, if inputs are refreshed."""
    seen = []
    fista = method_of("prune", spec_of(prune={"method": "fista", "sparsity": 0.5}).prune)

    def prune(layers: Any, stats: LinearStats, *args: Any) -> Any:
        seen.append(([layer.name.split(".")[-1] for layer in layers], stats.cross_gram_II is not None))
        assert (stats.cross_gram_II is None) == (stats.dense_gram_II is None)
        assert stats.gram_II is not None
        return fista.function(layers, stats, *args)

    def found(stage: Any, params: Any) -> Any:
        return replace(fista, function=prune) if stage == "prune" else method_of(stage, params)

    monkeypatch.setattr("workers.engine.spec.method_of", found)
    spec = spec_of(prune={"method": "fista", "sparsity": 0.5}, score=None, **calibrate(refresh=refresh))
    walk(spec, sources, tmp_path)
    twins = refresh == "projection"
    expected = [(stage.split(), twins and stage != STAGES[0]) for stage in STAGES]
    assert seen == expected * 3


@pytest.mark.parametrize(
    ("tensor", "value", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", float("nan"), "model.layers.1.mlp.up_proj: its weights"),
        ("model.embed_tokens.weight", float("inf"), "block 0: the attention_input"),
    ],
)
def test_broken_weights_are_named(
    tensor: str, value: float, message: str, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    tensors = load_file(tiny / "model.safetensors")
    tensors[tensor][:] = value
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    # Weights are looked at before the inputs of their own block are: magnitude sees the one, Wanda the other.
    spec = spec_of() if value == float("inf") else spec_of(score={"method": "magnitude"}, calibrate=None)
    with pytest.raises(NumericalFailure, match=message):
        walk(spec, sources, tmp_path)


def test_layers_must_read_what_their_names_say(tiny: Path, sources: Sources, scratch: Scratch) -> None:
    spec = spec_of()
    model = load(spec, sources)
    way, inputs = entering(model, text_of(spec, model, sources), scratch)
    with way, way.at(0, inputs, tensors_of(model, "model.layers.0")) as at:
        up_proj = at.module.get_submodule("mlp.up_proj")
        hook = up_proj.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
        with pytest.raises(UnsupportedModel, match=r"up_proj does not read the same mlp_input as .*gate_proj"):
            collect(at, Stat.INPUT_SQ_MEAN)
        hook.remove()


class TestPackagedType:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_is_the_files_and_the_configs(self, dtype: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        spec = spec_of(package={"dtype": dtype})
        done = walk(spec, sources, tmp_path)
        assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
        tensors = load_file(tmp_path / "model/model.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {getattr(torch, dtype)}
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        assert loaded.dtype == getattr(torch, dtype)

    def test_refuses_to_overflow(self, tiny: Path, sources: Sources, tmp_path: Path) -> None:
        tensors = load_file(tiny / "model.safetensors")
        tensors["model.norm.weight"][0] = 1e6
        save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(NumericalFailure, match=r"model\.norm\.weight holds values beyond the range of float16"):
            walk(spec_of(package={"dtype": "float16"}), sources, tmp_path)


def test_shards_hold_whole_blocks_and_load(save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
    folder = save_model("tiny", LlamaConfig(**SIZES | {"intermediate_size": 2048, "num_hidden_layers": 4}))
    spec = spec_of(package={"shard_bytes": 2**21})
    done = walk(spec, sources, tmp_path)
    assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_size <= 2**21 for shard in shards)
    blocks_of = [{name.split(".")[2] for name in load_file(shard) if ".layers." in name} for shard in shards]
    assert sum(map(len, blocks_of)) == 4, "no block may lie in two files"
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert {f.name for f in folder.glob("*.safetensors")} == {"model.safetensors"}


def test_same_spec_same_bytes(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec = spec_of()
    written = []
    for attempt in ("first", "second"):
        done = walk(spec, sources, tmp_path / attempt)
        assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / attempt / "model")
        written.append({file.name: file.read_bytes() for file in (tmp_path / attempt / "model").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"config.json", "model.safetensors"}
