"""Tuning on a mixture of domains: what each step reads, what is held out, what is reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.helpers.small_models import SIZES, SaveModel, load, spec_of
from tests.helpers.tuning import Folder, Killed, dying, saving_every_step, tuning
from workers.engine.errors import DatasetTooShort, InvalidSpec
from workers.engine.events import Silent
from workers.engine.model.loss import nll
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint
from workers.engine.training import loop
from workers.engine.training.text import TuningText, training_text
from workers.engine.training.turns import Turns

WORDS = {"sea": "the whale and the ship on the sea ", "law": "the judge and the law of the court "}
SHARES = {"sea": 3.0, "law": 1.0}
MIXED = {"dataset": "mixed.jsonl", "domains": {"column": "kind", "shares": SHARES}, "holdout": 4, "batch": 4}

DYNAMIC = {"domains": {"column": "kind", "shares": SHARES, "dynamic": {"reference": {"sea": 8.0, "law": 6.0}}}}


@pytest.fixture
def mixed(sources: Sources) -> Sources:
    """Rows of three domains in turn, each with words of its own."""
    rows = [{"kind": kind, "text": words * 40} for kind, words in (WORDS | {"rest": "nothing else "}).items()]
    (sources.data_dir / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 12))
    return sources


def text_of(sources: Sources, **changes: Any) -> tuple[TuningText, Any, Any]:
    spec = spec_of(tune=tuning("full", **MIXED | changes))
    model = load(spec, sources)
    text = training_text("tune", spec.tune, model, sources)
    assert text is not None
    return text, spec.tune, model.tokenizer


def test_each_step_takes_its_share_of_each_domain_and_of_no_other(tiny: Path, mixed: Sources) -> None:
    text, params, tokenizer = text_of(mixed)
    for step in range(6):
        told = [tokenizer.decode(ids_T) for ids_T in text.batch(params, step)]
        assert sum("whale" in one for one in told) == 3
        assert sum("judge" in one for one in told) == 1
        assert not any("nothing" in one for one in told)
    assert [len(domain.holdout_NT) for domain in text.domains] == [3, 1]
    assert [report.label for report in text.reads] == ["tune/mixed.jsonl: sea", "tune/mixed.jsonl: law"]


def test_a_domain_that_runs_out_is_read_again(tiny: Path, mixed: Sources) -> None:
    text, params, _ = text_of(mixed, steps=400)
    law = text.domains[1]
    assert len(law.train_NT) < 400
    found = torch.stack([text.batch(params, step)[(text.mixture.places(4 * step, 4 * step + 4)[0] == 1)][0]
                         for step in range(len(law.train_NT))])  # fmt: skip
    assert sorted(found.tolist()) == sorted(law.train_NT[:].tolist())


@pytest.mark.parametrize("changes", [{}, DYNAMIC], ids=["fixed", "dynamic"])
def test_killed_and_resumed_to_the_same_bytes_with_the_loss_of_each_domain(
    pruned: Folder,
    mixed: Sources,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
) -> None:
    params = tuning("full", **MIXED | changes)
    expected, whole = pruned.tune("whole", tune=params)
    for point in expected.curve:
        assert point.domains is not None
        assert point.holdout_loss == pytest.approx(0.75 * point.domains["sea"] + 0.25 * point.domains["law"])
    saving_every_step(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save_training", dying(Checkpoint.save_training, 2))
        with pytest.raises(Killed):
            pruned.tune("killed", tune=params)
    report, folder = pruned.tune("killed", tune=params)
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert report.curve == expected.curve


def test_shares_follow_what_the_loss_of_a_domain_has_above_its_reference(pruned: Folder, mixed: Sources) -> None:
    report, _ = pruned.tune("dynamic", tune=tuning("full", **MIXED | DYNAMIC))
    shares = {"sea": 0.75, "law": 0.25}
    assert report.curve[0].figures is None
    for point in report.curve[1:]:
        assert point.figures is not None
        assert point.domains is not None
        grown = {"sea": point.domains["sea"] - 8, "law": point.domains["law"] - 6}
        shares = {name: share * math.exp(grown[name]) for name, share in shares.items()}
        shares = {name: share / sum(shares.values()) for name, share in shares.items()}
        found = {name: point.figures[f"share of {name}"] for name in shares}
        assert sum(found.values()) == pytest.approx(1)
        assert found == pytest.approx(shares, abs=1e-3)  # less what is spread evenly
    assert shares["law"] > 0.9


def test_without_a_reference_it_is_the_dense_model_on_the_held_out_windows(
    pruned: Folder, mixed: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Turns] = []
    monkeypatch.setattr(loop, "Turns", lambda *given: made.append(Turns(*given)) or made[-1])
    domains = {"domains": {"column": "kind", "shares": SHARES, "dynamic": {}}}
    spec = spec_of(tune=tuning("full", **MIXED | domains, steps=2))
    pruned.tune("dynamic", tune=tuning("full", **MIXED | domains, steps=2))
    text = pruned.text(spec, load(spec, mixed))
    dense = AutoModelForCausalLM.from_pretrained(mixed.models_dir / "tiny")
    with torch.no_grad():
        expected = [nll(dense, domain.holdout_NT).mean().item() for domain in text.domains]
    assert made[0].references == pytest.approx(expected, abs=1e-5)


def test_the_dense_model_that_is_asked_for_references_is_planned(
    save_model: SaveModel, mixed: Sources, tmp_path: Path
) -> None:
    """It is in memory beside the one in training, which it no longer is where references are given."""
    save_model("tiny", LlamaConfig(**SIZES | {"hidden_size": 256, "intermediate_size": 512}))

    def peak(dynamic: dict[str, Any], **changes: Any) -> int:
        domains = {"domains": {"column": "kind", "shares": SHARES, "dynamic": dynamic}}
        spec = spec_of(tune=tuning("lora", **MIXED | domains | {"batch": 1, "distill": None} | changes))
        return plan(spec, mixed).peak_memory_bytes

    given = DYNAMIC["domains"]["dynamic"]
    parameters = plan(spec_of(), mixed).parameters
    assert peak({}) > peak(given) + parameters, "another model of four bytes each, less what a backward pass keeps"
    assert peak({}, distill={}) == peak(given, distill={}), "the teacher is there anyway"


def test_any_domain_may_get_all_windows_where_shares_follow_losses(tiny: Path, mixed: Sources) -> None:
    text, params, tokenizer = text_of(mixed, **DYNAMIC)
    turns = Turns([1.0, 1.0], [0.0, 1.0])
    told = [tokenizer.decode(ids_T) for step in range(6) for ids_T in text.batch(params, step, turns)]
    assert all("judge" in one for one in told)
    assert len(text.domains[1].train_NT) == 24 > len(text_of(mixed)[0].domains[1].train_NT)


def test_a_report_says_how_each_domain_fared(tiny: Path, mixed: Sources, tmp_path: Path) -> None:
    report = compress(spec_of(tune=tuning("full", **MIXED)), tmp_path, mixed, Silent(), tmp_path / "checkpoint")
    assert [text.label for text in report.texts][1:] == ["tune/mixed.jsonl: sea", "tune/mixed.jsonl: law"]
    page = (tmp_path / "model/report.html").read_text()
    assert "By domain: sea (75 % of the windows) from " in page


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"domains": {"column": "kind", "shares": {"sea": 1.0, "air": 1.0}}}, "shares", "there are sea, law, rest"),
        ({"domains": {"column": "topic", "shares": SHARES}}, "column", "no name of a domain in a column 'topic'"),
        ({"dataset": "calibration.txt"}, "", "one text, without rows of a domain"),
    ],
)
def test_what_the_text_does_not_have_is_refused_before_any_work(
    changes: dict[str, Any], field: str, said: str, tiny: Path, mixed: Sources, tmp_path: Path
) -> None:
    spec = spec_of(tune=tuning("full", **MIXED | changes))
    for refusing in (
        lambda: plan(spec, mixed),
        lambda: compress(spec, tmp_path, mixed, Silent(), tmp_path / "checkpoint"),
    ):
        with pytest.raises(InvalidSpec, match=said) as found:
            refusing()
        assert found.value.field == f"/tune/domains/{field}".rstrip("/")
    assert not (tmp_path / "model").exists()


def test_a_plan_reads_no_large_file_for_names_of_domains(tiny: Path, mixed: Sources) -> None:
    """They may come late; but every row has one."""
    spec = spec_of(tune=tuning("full", **MIXED | {"domains": {"column": "kind", "shares": {"sea": 1.0, "air": 1.0}}}))
    path = mixed.data_dir / "mixed.jsonl"
    path.write_text(path.read_text() + json.dumps({"kind": "law", "text": "x" * 2**20}) + "\n")
    assert plan(spec, mixed).spec_digest == spec.digest()
    with pytest.raises(InvalidSpec, match="no row has 'air' in the column 'kind'; there are"):
        text_of(mixed, domains=spec.tune.domains.model_dump())
    path.write_text(json.dumps({"text": "none"}) + "\n" + path.read_text())
    with pytest.raises(InvalidSpec, match="no name of a domain"):
        plan(spec, mixed)


def test_a_domain_of_too_few_windows_is_named(tiny: Path, mixed: Sources) -> None:
    with (mixed.data_dir / "mixed.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "air", "text": "a bird"}) + "\n")
    with pytest.raises(DatasetTooShort, match="air"):
        text_of(mixed, domains={"column": "kind", "shares": {"sea": 1.0, "air": 1.0}})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"domains": {"column": "kind", "shares": SHARES, "dynamic": {"reference": {"sea": 1.0, "air": 1.0}}}},
            "`reference` names air, sea, and `shares` law, sea",
        ),
        ({"holdout": 1}, "cannot be of 2 domains: raise `holdout`"),
        ({"domains": {"column": "kind", "shares": {"sea": 1.0}}}, "at least 2 items"),
        ({"domains": {"column": "kind", "shares": {"sea": 1.0, "l\naw": 1.0}}}, "should match pattern"),
        ({"domains": {"column": "kind", "shares": {"sea": 1.0, "law": True}}}, "valid number"),
        ({"domains": {"column": "kind", "shares": {"sea": 1.0, "law": 1e-4}}}, "raise its share"),
        ({"domains": {"column": "kind", "shares": {"sea": 1.0, "law": 0.0}}}, "greater than 0"),
        ({"domains": {"column": "kind", "shares": {"sea": 1e308, "law": 1e308}}}, "raise its share"),
    ],
)
def test_shares_that_make_no_mixture_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(tune=tuning("full", **MIXED | changes))
