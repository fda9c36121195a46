"""Dense layouts beyond Llama's: what `tests/families`, which masks a family of each, does not run in every test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.families.checkpoints import save_tiny
from tests.families.loading import logits
from tests.families.of_masks import same_otherwise
from tests.families.of_widths import masked as same_as_masked
from tests.families.sides import Side, loads
from tests.helpers.small_models import Scratch, load, spec_of, text_of
from workers.engine.events import Silent
from workers.engine.model.loaded import tensors_of
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.pipeline import compress
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.stages import package

RANDOM = {"method": "random", "seed": 6}


@pytest.fixture(autouse=True)
def plain_page() -> Iterator[None]:
    """Figures take longer than all the rest."""
    with patch.object(package, "render_page", lambda report: ""):
        yield


def made(family: str, sources: Sources) -> Side:
    save_tiny(family, sources.models_dir / "tiny")
    return Side(sources.models_dir / "tiny")


def result_of(sources: Sources, folder: Path, **parts: Any) -> tuple[Side, Report]:
    report = compress(spec_of(**parts), folder, sources, Silent(), folder / "checkpoint")
    result = Side(folder / "model")
    loads(result)
    return result, report


@pytest.mark.parametrize(
    ("family", "units"),
    [("gpt2", "channel"), ("falcon", "channel"), ("phi", "channel"), ("glm4", "head"), ("gpt_neox", "channel")],
)
def test_units_of_shared_and_transposed_matrices_are_cut(
    family: str, units: str, sources: Sources, tmp_path: Path
) -> None:
    dense = made(family, sources)
    prune = {"method": "structured", "sparsity": 0.2, "units": [units], "compensate": False}
    narrow, report = result_of(sources, tmp_path / "narrow", score=RANDOM, prune=prune)
    (tmp_path / "dense").mkdir()
    same_as_masked(dense, narrow, tmp_path / "dense")
    assert {layer.reads for layer in report.layers if layer.sparsity} >= {units}


LORA = {"method": "lora", "rank": 2}
SPP = {"method": "spp", "rank": 2}


@pytest.mark.parametrize(
    ("family", "tune"),
    [
        ("gpt2", LORA),
        ("gpt2", SPP),
        ("gpt2", {"method": "last_layers"}),
        ("gpt2", {"method": "full"}),
        ("phi3", SPP),
        ("phi3", LORA),
        ("gpt_neox", LORA),
    ],
)
def test_tuning_keeps_the_zeros_of_shared_and_transposed_matrices(
    family: str, tune: dict[str, Any], sources: Sources, tmp_path: Path
) -> None:
    """The engine compares the tuned result with the model as it was trained."""
    dense = made(family, sources)
    steps = {
        "dataset": "calibration.txt",
        "steps": 6,
        "batch": 4,
        "holdout": 4,
        "sequence_length": 16,
        "learning_rate": 0.003,
    }
    tuned, report = result_of(sources, tmp_path / "tuned", tune=tune | steps)
    changed = same_otherwise(dense, tuned)
    assert report.zeros == sum(int((after == 0).sum()) for _, after in changed.values() if after.ndim > 1)
    assert any((after[after != 0] != before[after != 0]).any() for before, after in changed.values())


@pytest.mark.parametrize("family", ["ctrl", "gpt2", "gpt_neox", "modernbert-decoder", "openai-gpt"])
def test_the_loss_block_by_block_is_the_whole_models(family: str, sources: Sources, scratch: Scratch) -> None:
    """The part between the blocks and the logits is the model's own: no norm, a layer more, a bias, another name."""
    dense, spec = made(family, sources), spec_of()
    model = load(spec, sources)
    text, layout = text_of(spec, model, sources), model.architecture.layout
    with closing(StreamedLoss(model, text, scratch, keep_path=False)) as streamed:
        found_N = streamed.nll(range(4), lambda block: tensors_of(model, layout.block(block)))
    ids_NT = text.windows_NT
    whole_NTV = logits(dense.model.to(model.dtype), ids_NT)[:, :-1]
    losses = cross_entropy(whole_NTV.flatten(0, 1), ids_NT[:, 1:].flatten(), reduction="none").view(len(ids_NT), -1)
    torch.testing.assert_close(found_N.float(), losses.mean(dim=1), rtol=1e-3, atol=1e-3)
