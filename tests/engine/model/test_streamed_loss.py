"""Losses measured block by block, and of trial prunings, against whole models in memory.

N = windows, T = tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.layer_inputs import inputs_of
from tests.helpers.small_models import SIZES, SaveModel, Scratch, load, spec_of, text_of
from workers.engine.architectures.layouts.llama import LAYOUT
from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.errors import NumericalFailure
from workers.engine.events import Silent
from workers.engine.methods.prune import sparsegpt
from workers.engine.methods.prune.sparsegpt import SparseGPTParams
from workers.engine.model.loaded import LoadedModel, tensors_of
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.model.trial_losses import Trials
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.store.run import Run

STREAMS = {layer.name: layer.stream for layer in LAYOUT.layers}


@pytest.fixture(params=[False, True], ids=["own-head", "tied-head"])
def folder(request: Any, save_model: SaveModel) -> Path:
    return save_model("tiny", LlamaConfig(**SIZES, tie_word_embeddings=request.param))


def whole(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def nll_of(model: Any, windows_NT: Tensor) -> Tensor:
    """transformers' own loss, window by window."""
    with torch.no_grad():
        return torch.stack([model(ids_T[None], labels=ids_T[None], use_cache=False).loss for ids_T in windows_NT])


@pytest.mark.parametrize("keep_path", [True, False])
def test_equals_the_whole_models_loss(
    keep_path: bool, folder: Path, sources: Sources, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "workers.engine.model.streamed_loss.LOGIT_TOKENS", 7
    )  # windows of 31 predictions: not a divisor
    spec = spec_of()
    model = load(spec, sources)
    text = text_of(spec, model, sources)
    with closing(StreamedLoss(model, text, scratch, keep_path=keep_path)) as streamed:
        found = streamed.nll(range(3), lambda block: tensors_of(model, f"model.layers.{block}"))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), nll_of(whole(folder), text.windows_NT))


def test_variants_share_the_blocks_before_they_part(folder: Path, sources: Sources, scratch: Scratch) -> None:
    spec = spec_of()
    model = load(spec, sources)
    text = text_of(spec, model, sources)
    asked: list[int] = []

    def tensors(variant: tuple[int, ...]) -> Callable[[int], Mapping[str, Tensor]]:
        """Where a block's entry is 1 its MLP puts out nothing."""

        def of(block: int) -> dict[str, Tensor]:
            asked.append(block)
            found = tensors_of(model, f"model.layers.{block}")
            name = f"model.layers.{block}.mlp.down_proj.weight"
            found[name] = found[name] * (1 - variant[block])
            return found

        return of

    # After each: which blocks the next must run.
    plan = [((0, 0, 0), [0, 1, 2]), ((0, 0, 1), [2]), ((0, 1, 1), [1, 2]), ((0, 1, 1), []), ((1, 1, 1), [0, 1, 2]),
            ((1, 0, 0), [1, 2]), ((0, 0, 0), [0, 1, 2])]  # fmt: skip
    with closing(StreamedLoss(model, text, scratch, keep_path=True)) as streamed:
        for variant, blocks in plan:
            asked.clear()
            found = streamed.nll(variant, tensors(variant))
            assert asked == blocks
            expected = whole(folder)
            for block, gone in enumerate(variant):
                expected.model.layers[block].mlp.down_proj.weight.data *= 1 - gone
            torch.testing.assert_close(found.float(), nll_of(expected, text.windows_NT))


class Lines(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def dense_statistics(dense: Any, windows_NT: Tensor) -> dict[str, LinearStats]:
    return {
        f"{block}/{stream}": LinearStats(
            input_sq_mean_I=x.square().mean(dim=0).float(), gram_II=(x.T @ x / len(x)).float()
        )
        for block in range(3)
        for stream, x in inputs_of(dense, windows_NT, block).items()
    }


def pruned_by_hand(
    dense: Any, stats: Mapping[str, LinearStats], sparsity: Mapping[str, float], spec: CompressionSpec
) -> Any:
    """In place: by SparseGPT, a layer at a time, or masked by sorting |W| rms(input), or |W|."""
    for name, share in sparsity.items():
        block, reader = name.split(".")[2], name.split(".", 3)[3]
        weight_OI = dense.get_submodule(name).weight.data
        found = stats[f"{block}/{STREAMS[reader]}"]
        if spec.score is None:
            params = SparseGPTParams(sparsity=share)
            (solved_OI,) = sparsegpt.prune([LayerTask(name, weight_OI, share)], found, "matrix", params)
            weight_OI.copy_(solved_OI)
            continue
        score_OI = weight_OI.abs()
        if spec.score.method != "magnitude":
            assert found.input_sq_mean_I is not None
            score_OI = score_OI * found.input_sq_mean_I.sqrt()
        by_row = spec.group == "row"
        rows = score_OI if by_row else score_OI.reshape(1, -1)
        drops = int(rows.shape[1] * share) if by_row else round(rows.shape[1] * share)
        lowest = rows.argsort(dim=1, stable=True)[:, :drops]
        gone_OI = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, lowest, True).reshape(weight_OI.shape)
        weight_OI[gone_OI] = 0
    return dense


@pytest.fixture
def opened(scratch: Scratch) -> Iterator[Callable[..., Trials]]:
    """Trials that are closed when the test is over."""
    made: list[Trials] = []

    def make(*args: Any) -> Trials:
        made.append(Trials(*args))
        return made[-1]

    yield make
    for trials in made:
        trials.close()


def names(model: LoadedModel) -> list[str]:
    return [layer.name for layer in model.architecture.layers]


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"score": {"method": "magnitude"}},
        {"prune": {"method": "mask", "pattern": "2:4"}},
        {"score": None, "prune": {"method": "sparsegpt", "sparsity": 0.5}},
    ],
    ids=["wanda", "magnitude", "two-of-four", "sparsegpt"],
)
def test_a_trial_is_the_model_pruned_by_hand(
    parts: dict[str, Any], folder: Path, sources: Sources, scratch: Scratch, opened: Callable[..., Trials]
) -> None:
    spec = spec_of(**parts)
    model = load(spec, sources)
    text = text_of(spec_of(), model, sources)
    stats = dense_statistics(whole(folder), text.windows_NT)
    events = Lines()
    trials = opened(spec, model, text, stats, "", Run.of(scratch, events))
    # Blocks differ, then layers of a block, then nothing goes.
    spreads = [
        {name: 0.25 * (1 + int(name.split(".")[2])) for name in names(model)},
        {name: 0.25 * (index % 4) for index, name in enumerate(names(model))},
        dict.fromkeys(names(model), 0.0),
    ]
    for sparsity in [*spreads, spreads[0]]:
        expected = nll_of(pruned_by_hand(whole(folder), stats, sparsity, spec), text.windows_NT).mean().item()
        assert trials.loss(sparsity) == pytest.approx(expected, rel=1e-5)
    assert len(events.lines) == 3, "the same allocation is not tried twice"


def test_a_loss_that_is_not_finite_is_a_failure(
    tiny: Path, sources: Sources, scratch: Scratch, opened: Callable[..., Trials]
) -> None:
    spec = spec_of()
    model = load(spec, sources)
    text = text_of(spec, model, sources)
    stats = dense_statistics(whole(tiny), text.windows_NT)
    trials = opened(spec, model, text, stats, "", Run.of(scratch, Silent()))
    for block in model.skeleton.get_submodule("model.layers").children():
        block.register_forward_hook(lambda module, args, output: output * float("inf"))
    with pytest.raises(NumericalFailure, match="loss"):
        trials.loss(dict.fromkeys(names(model), 0.5))


def test_a_loss_once_found_is_not_measured_again(
    tiny: Path, sources: Sources, scratch: Scratch, opened: Callable[..., Trials], tmp_path: Path
) -> None:
    spec = spec_of()
    model = load(spec, sources)
    text = text_of(spec, model, sources)
    stats = dense_statistics(whole(tiny), text.windows_NT)
    half = dict.fromkeys(names(model), 0.5)
    losses, logs = [], []
    # The same text and statistics again; then statistics of another text.
    for digest in "aab":
        logs.append(Lines())
        run = Run.of(scratch, logs[-1], tmp_path / "cache")
        losses.append(opened(spec, model, text, stats, digest, run).loss(half))
    assert len(set(losses)) == 1
    assert [len(events.lines) for events in logs] == [1, 0, 1]
