from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.in_memory import LLAMA, ids_of, in_memory
from tests.helpers.small_models import spec_of
from tests.helpers.training import training
from workers.engine.errors import SequenceTooLong
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.training.prompted import prompted

PROMPT_P = torch.tensor([5, 9, 11])


@pytest.mark.parametrize("front", [0, 1])
def test_training_reads_the_prompt_and_gives_logits_of_the_windows_alone(front: int) -> None:
    found = in_memory(LLAMA)
    ids_BT = ids_of(found)
    prompt_BP = PROMPT_P.expand(len(ids_BT), -1)
    whole_BT = torch.cat([ids_BT[:, :front], prompt_BP, ids_BT[:, front:]], dim=1)
    with torch.no_grad():
        plain_BTV = found.model(input_ids=ids_BT, use_cache=False).logits
        expected_BTV = found.model(input_ids=whole_BT, use_cache=False).logits[:, 3:]
        prompted(found.model, PROMPT_P, front)
        assert torch.equal(found.model(input_ids=ids_BT, use_cache=False).logits, plain_BTV), "in evaluation mode"
        found.model.train()
        assert torch.equal(found.model(input_ids=ids_BT, use_cache=False).logits, expected_BTV)
    assert expected_BTV.shape == plain_BTV.shape


def job(sources: Sources, folder: Path, **train: Any) -> Report:
    parts = {"score": None, "calibrate": None, "prune": {"method": "structured", "sparsity": 0.3}}
    spec = spec_of(**parts, train=training("compresso", steps=1, **train))
    return compress(spec, folder, sources, Silent(), folder / "checkpoint")


def test_a_job_trains_behind_the_prompt_and_is_measured_without(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    curves = []
    for name, prompt in (("with", {}), ("without", {"prompt": ""})):
        report = job(sources, tmp_path / name, **prompt)
        assert report.train is not None
        curves.append(report.train.curve)
    (first, last), (first_without, last_without) = curves
    assert first == first_without
    assert last.train_loss != last_without.train_loss


def test_a_prompt_that_does_not_fit_before_a_window_is_refused_before_training(
    tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    with pytest.raises(SequenceTooLong, match=r"windows of 120 exceed the model's context of 128") as found:
        job(sources, tmp_path, sequence_length=120)
    assert found.value.field == "/train/prompt"
