"""Families beyond those of every test: what lies outside of their blocks (scaled embeddings, scaled or capped logits,
parallel attention and MLP, more norms) must not be lost where blocks are walked one by one.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tests.helpers.families import HEAD_DIM, MORE_FAMILIES, WHOLE_BLOCKS, described, masked_by_hand
from tests.helpers.small_models import SIZES, SaveModel, Scratch, load, spec_of, text_of
from workers.engine.errors import UnsupportedModel
from workers.engine.events import Silent
from workers.engine.model.gradients import gradients
from workers.engine.model.loaded import load_model, tensors_of
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.store.run import Run

DETAILS = MORE_FAMILIES | {"helium": HEAD_DIM}


def config(family: str) -> PretrainedConfig:
    found: PretrainedConfig = AutoConfig.for_model(family, **SIZES | DETAILS.get(family, {}))
    return found


@pytest.mark.parametrize("family", [*MORE_FAMILIES, *WHOLE_BLOCKS])
def test_losses_and_gradients_are_the_whole_models(
    family: str, save_model: SaveModel, sources: Sources, scratch: Scratch
) -> None:
    folder = save_model("tiny", config(family))
    model = load(spec_of(), sources)
    text = text_of(spec_of(), model, sources)
    with closing(StreamedLoss(model, text, scratch, keep_path=False)) as streamed, torch.no_grad():
        found_N = streamed.nll(range(3), lambda block: tensors_of(model, f"model.layers.{block}"))
    found = dict(gradients(model, text, Run.of(scratch, Silent()), splits=1, squared=False))

    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    losses = [whole(ids_T[None], labels=ids_T[None], use_cache=False).loss for ids_T in text.windows_NT]
    torch.testing.assert_close(found_N.float(), torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)
    torch.stack(losses).mean().backward()
    for name, parameter in whole.named_parameters():
        if ".layers." in name:
            gradient = found[int(name.split(".")[2])].mean[0][name]
            scale = float(parameter.grad.abs().max())
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("family", MORE_FAMILIES)
def test_cut_and_shortened_results_load_and_compute_what_was_walked(
    family: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", config(family))
    evaluate = [{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}]
    for name, parts in {
        "units": {"score": {"method": "taylor"}, "prune": {"method": "structured", "sparsity": 0.35}},
        "depth": {"score": {"method": "block_influence"}, "prune": {"method": "depth", "layers": 1}},
    }.items():
        spec = spec_of(**parts, evaluate=evaluate)
        report = compress(spec, tmp_path / name, sources, Silent(), tmp_path / f"{name}-checkpoint")
        result = load_model(tmp_path / name / "model", torch.device("cpu"), torch.float32)
        assert sum(parameter.numel() for parameter in result.parameters()) == report.parameters_after
        assert report.parameters_after < report.parameters
        ids_BT = torch.arange(3, 19)[None]
        with torch.no_grad():
            whole_BTV = result(ids_BT, use_cache=False).logits
            if name == "units":
                masked = masked_by_hand(folder, result.state_dict(), described(sources)[1])
                torch.testing.assert_close(whole_BTV, masked(ids_BT).logits, rtol=1e-4, atol=1e-5)
            step_B1V = result(
                ids_BT[:, -1:], past_key_values=result(ids_BT[:, :-1], use_cache=True).past_key_values
            ).logits
        torch.testing.assert_close(step_B1V[:, -1], whole_BTV[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", WHOLE_BLOCKS)
def test_heads_that_cannot_be_cut_are_refused_before_the_work(
    family: str, save_model: SaveModel, sources: Sources
) -> None:
    save_model("tiny", config(family))
    spec = spec_of(score={"method": "magnitude"}, prune={"method": "structured", "sparsity": 0.35})
    with pytest.raises(UnsupportedModel, match=WHOLE_BLOCKS[family]):
        load(spec, sources)


HEADS, CHANNELS = ["head", "channel"], ["channel"]


@pytest.mark.parametrize(
    ("family", "prune", "message"),
    [
        (
            "diffllama",
            {"method": "structured", "units": HEADS},
            r"lambda_k1 follows the heads in a way that is not known",
        ),
        ("diffllama", {"method": "structured", "units": CHANNELS}, ""),
        ("diffllama", {"method": "depth", "layers": 1}, "its blocks compute with their own number"),
        ("bitnet", {"method": "structured", "units": CHANNELS}, "ffn_sub_norm follows all channels of the MLP"),
        ("bitnet", {"method": "structured", "units": ["head"]}, "attn_sub_norm is a norm over all heads"),
        ("bitnet", {"method": "depth", "layers": 1}, ""),
        ("granite_swa", {"method": "structured", "units": HEADS}, "sinks follows the heads in a way"),
        ("granite_swa", {"method": "structured", "units": CHANNELS}, ""),
        ("helium", {"method": "structured", "units": HEADS}, "transformers would build"),
        ("olmo2", {"method": "structured", "units": CHANNELS}, ""),
    ],
)
def test_what_else_follows_the_units_is_known_at_planning(
    family: str, prune: dict[str, Any], message: str, save_model: SaveModel, sources: Sources
) -> None:
    save_model("tiny", config(family))
    score = "reverse_order" if prune["method"] == "depth" else "magnitude"
    prune = prune if prune["method"] == "depth" else prune | {"sparsity": 0.35}
    spec = spec_of(score={"method": score}, prune=prune)
    if not message:
        plan(spec, sources)
        return
    with pytest.raises(UnsupportedModel, match=message) as planned:
        plan(spec, sources)
    with pytest.raises(UnsupportedModel) as done:
        load(spec, sources)
    assert planned.value.message == done.value.message


def test_heads_refused_by_their_config_are_refused_where_the_job_decides_how_many(
    save_model: SaveModel, sources: Sources
) -> None:
    save_model("tiny", config("helium"))
    prune = {"method": "structured", "at_most": {"decode_time": 0.8, "tokens": 16}}
    with pytest.raises(UnsupportedModel, match="transformers would build"):
        plan(spec_of(score={"method": "magnitude"}, prune=prune), sources)


def test_channels_are_cut_where_a_norm_ties_the_heads_together(
    save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", config("olmo2"))
    prune = {"method": "structured", "units": CHANNELS, "sparsity": 0.2, "compensate": False}
    report = compress(
        spec_of(score={"method": "magnitude"}, prune=prune), tmp_path, sources, Silent(), tmp_path / "checkpoint"
    )
    result = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert sum(parameter.numel() for parameter in result.parameters()) == report.parameters_after
    masked = masked_by_hand(folder, result.state_dict(), described(sources)[1])
    ids_BT = torch.arange(3, 19)[None]
    torch.testing.assert_close(result(ids_BT).logits, masked(ids_BT).logits, rtol=1e-4, atol=1e-5)
