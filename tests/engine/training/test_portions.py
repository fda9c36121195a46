"""Training on a text that is read on meanwhile: the order of its windows, and all else as of one read before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.helpers.small_models import load, spec_of
from tests.helpers.tuning import Folder, Killed, dying, saving_every_step, tuning, weights
from workers.engine import pipeline
from workers.engine.errors import CheckpointMismatch, InvalidSpec, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.ranks import Ranks
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts import stream
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.training.portions import AHEAD, PORTION
from workers.engine.training.text import Domain, TuningText, training_text

WORDS = ("whale", "judge", "garden", "engine", "winter")
DOMAINS = {"column": "kind", "shares": {"sea": 3.0, "law": 1.0}}
DYNAMIC = DOMAINS | {"dynamic": {"reference": {"sea": 8.0, "law": 6.0}}}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts arrive little by little: four windows of 32 tokens, or so."""
    monkeypatch.setattr(stream, "PIECE", 512)


def rows(count: int) -> list[dict[str, str]]:
    return [
        {"kind": ("sea", "law")[i % 2], "text": f"{WORDS[i % 5]} {i} and the {WORDS[i % 3]} of {i * i} " * 6}
        for i in range(count)
    ]


@pytest.fixture
def text(sources: Sources, little: None) -> Path:
    """A text of 200 rows of two domains, some 400 windows of 32 tokens."""
    path = sources.data_dir / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(200)))
    return path


@pytest.fixture
def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pieces that are tokenised, each with a few characters before it; not what is tokenised to find where to cut."""
    found: list[str] = []

    def recorded(encode: Callable[..., Any]) -> Callable[..., Any]:
        def encoded(tokenizer: Any, text: str) -> Any:
            if len(text) > 2 * stream.CONTEXT:
                found.append(text)
            return encode(tokenizer, text)

        return encoded

    for name in ("token_ids", "ids_and_ends"):
        monkeypatch.setattr(stream, name, recorded(getattr(stream, name)))
    return found


def params_of(**changes: Any) -> dict[str, Any]:
    return tuning("full", **{"dataset": "rows.jsonl", "steps": 8, "batch": 4} | changes)


def text_of(sources: Sources, portion: int, **changes: Any) -> tuple[TuningText, Any]:
    spec = spec_of(tune=params_of(**changes))
    return training_text("tune", spec.tune, load(spec, sources), sources, portion=portion), spec.tune


def test_an_epoch_goes_through_its_portions_and_through_each_in_an_order_of_its_own() -> None:
    windows_N1 = torch.arange(20)[:, None]
    domain = Domain(cast("Any", windows_N1[:10]), windows_N1[:1], portion=4)
    epochs = domain.windows(0, 30, seed=3).view(3, 10)
    for epoch in epochs:
        assert [sorted(part.tolist()) for part in epoch.split(4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    orders = [(part - part.min()).tolist() for epoch in epochs for part in epoch[:8].split(4)]
    assert len({tuple(order) for order in orders}) > 3
    # Windows that follow change nothing, and neither does where a step begins.
    longer = Domain(cast("Any", windows_N1), windows_N1[:1], portion=4)
    assert torch.equal(longer.windows(0, 8, seed=3).flatten(), epochs[0, :8])
    assert torch.equal(domain.windows(7, 9, seed=3).flatten(), epochs.flatten()[7:16])


def test_a_text_of_one_portion_has_one_permutation_an_epoch() -> None:
    windows_N1 = torch.arange(6)[:, None]
    found = Domain(cast("Any", windows_N1), windows_N1[:1]).windows(0, 12, seed=5).view(2, 6)
    for epoch in (0, 1):
        generator = torch.Generator().manual_seed((5 << 24) + epoch)
        assert torch.equal(found[epoch], torch.randperm(6, generator=generator))


@pytest.mark.parametrize("domains", [None, DOMAINS], ids=["one", "mixed"])
def test_steps_read_what_they_would_of_a_text_read_before(
    domains: dict[str, Any] | None, tiny: Path, sources: Sources, text: Path
) -> None:
    steps = 250  # more than the text has: it is read again
    found, params = text_of(sources, 16, steps=steps, domains=domains)
    whole, _ = text_of(sources, PORTION, steps=steps, domains=domains)
    assert [len(domain.train_NT) for domain in found.domains] == [16] * len(found.domains)
    assert not any(domain.ended for domain in found.domains)
    assert all(domain.ended and not domain.digests for domain in whole.domains)
    assert torch.equal(found.holdout_NT, whole.holdout_NT)
    assert found.beginning != whole.beginning
    read = replace(whole, domains=tuple(replace(domain, portion=16) for domain in whole.domains))
    for step in range(steps):
        assert torch.equal(found.batch(params, step), read.batch(params, step)), step
    assert found.digest == whole.digest
    assert found.reads == whole.reads
    assert found.warnings == whole.warnings
    assert found.train_windows == whole.train_windows < steps * params.batch


def test_what_is_said_of_a_text_depends_on_the_steps_alone(tiny: Path, sources: Sources, text: Path) -> None:
    def said(steps: Sequence[int]) -> tuple[Any, ...]:
        found, params = text_of(sources, 8, steps=100)
        with found.reading():
            for step in steps:
                found.batch(params, step)
        return found.digest, found.reads, found.train_windows, found.reach([20], Ranks())

    assert said(range(5)) == said([4])
    assert said([4])[2] == 24
    assert said([4]) != said([7])


def test_no_more_is_read_ahead_than_some_portions(tiny: Path, sources: Sources, text: Path) -> None:
    found, params = text_of(sources, 8, steps=100)
    background = found.background
    assert background is not None
    found.batch(params, 2)
    while (thread := background._thread) is not None:
        thread.join()
    (arrival,) = background._arrivals
    assert AHEAD <= len(arrival.told) <= AHEAD + 1  # a piece may complete two
    assert not arrival.over


def test_one_document_is_read_on_too(tiny: Path, sources: Sources, little: None) -> None:
    (sources.data_dir / "rows.txt").write_text((sources.data_dir / "calibration.txt").read_text())
    found, params = text_of(sources, 16, dataset="rows.txt", steps=60)
    whole, _ = text_of(sources, PORTION, dataset="rows.txt", steps=60)
    assert not found.domains[0].ended
    for step in range(60):
        found.batch(params, step)
    assert found.digest == whole.digest
    assert torch.equal(found.domains[0].train_NT[:], whole.domains[0].train_NT[:])
    assert [found.warnings, found.reads] == [whole.warnings, whole.reads]


@pytest.mark.parametrize(
    ("domains", "kill"), [(None, 7), (DYNAMIC, 5)], ids=["at the end", "in the midst of dynamic domains"]
)
def test_killed_and_resumed_to_the_same_bytes(
    domains: dict[str, Any] | None, kill: int, pruned: Folder, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, params = replace(pruned, portion=8), params_of(domains=domains)
    expected, whole = pruned.tune("whole", tune=params)
    assert expected.train_windows > 8
    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, kill))
        with pytest.raises(Killed):
            pruned.tune("killed", tune=params)
    report, folder = pruned.tune("killed", tune=params)
    assert report.resumed_step == kill + 1
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [report.curve, report.train_windows] == [expected.curve, expected.train_windows]


@pytest.mark.parametrize("domains", [None, DOMAINS, DYNAMIC], ids=["one", "mixed", "dynamic"])
def test_what_an_attempt_has_tokenised_the_next_one_does_not(
    domains: dict[str, Any] | None,
    pruned: Folder,
    text: Path,
    tokenised: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruned, params = replace(pruned, portion=8), params_of(steps=16, domains=domains)
    expected, whole = pruned.tune("whole", tune=params)
    assert expected.train_windows >= 8 * 8, "eight portions, of which two are read ahead"
    of_all = {*tokenised}
    tokenised.clear()
    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 4))
        with pytest.raises(Killed):
            pruned.tune("killed", tune=params)
    before = len(tokenised)
    report, folder = pruned.tune("killed", tune=params)
    assert report.resumed_step == 5  # of 20 windows, the last ones of the third portion
    assert before < len(tokenised)
    assert {*Counter(tokenised).values()} == {1}
    assert len(of_all & {*tokenised}) > before
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [report.curve, report.train_windows] == [expected.curve, expected.train_windows]


def test_a_row_that_cannot_be_read_ends_the_training_where_it_is_needed(
    pruned: Folder, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, params = replace(pruned, portion=8), params_of()
    expected, whole = pruned.tune("whole", tune=params)
    saving_every_step(monkeypatch)
    good = text.read_text()
    lines = good.splitlines(keepends=True)
    text.write_text("".join([*lines[:14], "no row\n", *lines[14:]]))
    with pytest.raises(InvalidSpec, match=r"rows.jsonl line 15 is not JSON") as found:
        pruned.tune("broken", tune=params)
    assert found.value.field == "/tune/dataset"
    text.write_text(good)
    report, folder = pruned.tune("broken", tune=params)
    assert 0 < report.resumed_step < expected.steps
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_an_id_beyond_the_vocabulary_is_refused_where_it_comes(tiny: Path, sources: Sources, text: Path) -> None:
    spec = spec_of(tune=params_of(steps=100))
    model = load(spec, sources)
    model.tokenizer.add_tokens(["garden 87"])
    found = training_text("tune", spec.tune, model, sources, portion=8)
    for step in range(20):
        found.batch(spec.tune, step)
    with pytest.raises(UnsupportedModel, match="beyond the model's embedding of 4096 rows"):
        found.reach([400], Ranks())


@pytest.mark.parametrize(
    ("what", "instead"), [('"garden 12 ', '"garden 13 '), ("and the whale of 0 ", "")], ids=["a digit", "some words"]
)
def test_another_text_behind_the_first_portion_is_no_text_to_go_on_with(
    what: str, instead: str, pruned: Folder, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned, params = replace(pruned, portion=8), params_of()
    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 6))
        with pytest.raises(Killed):
            pruned.tune("killed", tune=params)
    good = text.read_text()
    assert what in good
    text.write_text(good.replace(what, instead))
    with pytest.raises(CheckpointMismatch, match="the text of tuning is another one than the 7 steps") as found:
        pruned.tune("killed", tune=params)
    assert found.value.field == "/tune/dataset"
    text.write_text(good)
    report, _ = pruned.tune("killed", tune=params)
    assert report.resumed_step == 7


def test_a_report_tells_of_all_that_was_trained_on(
    tiny: Path, sources: Sources, text: Path, tokenised: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(tune=params_of())

    def report(name: str) -> Report:
        return compress(spec, tmp_path / name, sources, Silent(), tmp_path / name / "checkpoint")

    whole = report("whole")
    monkeypatch.setattr(pipeline, "training_text", partial(training_text, portion=8))
    found = report("arriving")
    assert found.provenance.data_digests == whole.provenance.data_digests
    assert found.texts == whole.texts
    assert found.tune is not None
    assert whole.tune is not None
    assert found.tune.train_windows == whole.tune.train_windows == 32
    assert not [*(tmp_path / "arriving").glob("tokens-*")]
    before, after = (weights(tmp_path / name / "model") for name in ("whole", "arriving"))
    assert any(not torch.equal(before[name], after[name]) for name in before), "in another order"
    tokenised.clear()
    assert report("arriving").texts == found.texts
    assert not any("whale" in piece for piece in tokenised), "tokenised again by another attempt"
