from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.in_memory import LLAMA, ids_of, in_memory
from tests.helpers.small_models import load, spec_of
from tests.helpers.training import training
from workers.engine.errors import SequenceTooLong
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts.token_ids import token_ids
from workers.engine.spec import CompressionSpec
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


def asked(**train: Any) -> CompressionSpec:
    parts = {"score": None, "calibrate": None, "prune": {"method": "structured", "sparsity": 0.3}}
    return spec_of(**parts, train=training("compresso", steps=1, **train))


def job(sources: Sources, folder: Path, **train: Any) -> Report:
    return compress(asked(**train), folder, sources, Silent(), folder / "checkpoint")


def test_a_job_trains_behind_the_prompt_and_is_measured_without(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    curves = []
    for name, prompt in (("with", {}), ("without", {"prompt": ""})):
        report = job(sources, tmp_path / name, **prompt)
        assert report.train is not None
        curves.append(report.train.curve)
    (first, last), (first_without, last_without) = curves
    assert first == first_without
    assert last.train_loss != last_without.train_loss


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"sequence_length": 120}, r"use a sequence_length of at most \d+, or a shorter prompt"),
        ({"sequence_length": 128, "prompt": "Go."}, "use a sequence_length of at most 12"),
        ({"sequence_length": 8, "prompt": "Parts of it are being removed. " * 100}, "shorten the prompt"),
    ],
)
def test_a_prompt_that_does_not_fit_before_a_window_is_refused_by_the_dry_run(
    given: dict[str, Any], remedy: str, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    for refuses in (lambda: plan(asked(**given), sources), lambda: job(sources, tmp_path, **given)):
        with pytest.raises(SequenceTooLong, match=r"windows of \d+ exceed the model's context of 128") as found:
            refuses()
        assert found.value.field == "/train/prompt"
        assert re.match(remedy, found.value.hint)


def test_a_prompt_that_the_dry_run_cannot_count_is_refused_before_any_work(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a model whose vocabulary is not at hand: a prompt has a token of 32 characters at least."""
    monkeypatch.setattr("workers.engine.planning.text_length._vocabulary", lambda source: None)
    plan(asked(sequence_length=100), sources)
    stages: list[str] = []
    events = Silent()
    monkeypatch.setattr(events, "stage", stages.append)
    with pytest.raises(SequenceTooLong):
        compress(asked(sequence_length=100), tmp_path, sources, events, tmp_path / "checkpoint")
    assert stages == ["load", "calibrate"]


def test_a_prompt_that_just_fits_is_not_refused(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    prompt = "Some of it goes. "
    tokens = len(token_ids(load(spec_of(), sources).tokenizer, prompt, special=False))
    fits = {"prompt": prompt, "sequence_length": 128 - tokens}
    plan(asked(**fits), sources)
    job(sources, tmp_path, **fits)
