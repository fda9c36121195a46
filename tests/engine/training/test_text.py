"""Which documents of a text are held out, and what is trained on instead. N = windows."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_models import load, spec_of
from tests.helpers.tuning import tuning
from workers.engine.contracts.texts import Tokens, Wanted
from workers.engine.errors import DatasetTooShort
from workers.engine.events import Silent
from workers.engine.model import reading
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import held_out_windows
from workers.engine.pipeline import compress
from workers.engine.sources.resolve import Sources
from workers.engine.training.text import TuningText, training_text

WORDS = ("whale", "judge", "garden", "engine", "winter")
STEPS = {"steps": 2, "batch": 2, "holdout": 3}


def write(sources: Sources, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    (sources.data_dir / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def text_of(sources: Sources, **changes: Any) -> tuple[TuningText, Any]:
    spec = spec_of(tune=tuning("full", **STEPS | changes))
    model = load(spec, sources)
    text = training_text("tune", spec.tune, model, sources)
    assert text is not None
    return text, model.tokenizer


def told(text: TuningText, tokenizer: Any) -> tuple[str, str]:
    """(held out, trained on)"""
    (domain,) = text.domains
    return tokenizer.decode(domain.holdout_NT.flatten()), tokenizer.decode(domain.train_NT[:].flatten())


def words_in(text: str) -> set[str]:
    return {word for word in WORDS if word in text}


def test_the_first_documents_are_held_out_whole(tiny: Path, sources: Sources) -> None:
    # Two windows of 32 tokens and a bit of the first document, one and a bit of the others.
    rows = [{"text": f"the {word} and the {word} " * 7} for word in WORDS]
    text, tokenizer = text_of(sources, dataset=write(sources, rows))
    held, trained = told(text, tokenizer)
    assert words_in(held) == {"whale", "judge"}
    assert words_in(trained) <= {"garden", "engine", "winter"}
    assert trained.startswith("the garden")
    assert len(text.domains[0].train_NT) == 3
    assert text.reads[0].documents_held_out == 2
    assert text.warnings == []
    longer, _ = text_of(sources, dataset="rows.jsonl", steps=100)
    assert torch.equal(longer.holdout_NT, text.holdout_NT), "whatever the number of steps"
    assert torch.equal(longer.domains[0].train_NT[:3], text.domains[0].train_NT[:])


def test_a_held_out_document_that_goes_on_later_is_not_trained_on_there(tiny: Path, sources: Sources) -> None:
    order = ("whale", "judge", "garden", "whale", "engine", "judge", "winter")
    rows = [{"book": word, "text": f"the {word} and the {word} " * 7} for word in order]
    name = write(sources, rows)
    text, tokenizer = text_of(sources, dataset=name, document_field="book", steps=40)
    assert words_in(told(text, tokenizer)[1]) == {"garden", "engine", "winter"}
    text, tokenizer = text_of(sources, dataset=name, steps=40)
    assert words_in(told(text, tokenizer)[1]) == {*WORDS}, "rows that are documents of their own"


@pytest.mark.parametrize("name", ["one.txt", "one.jsonl"])
def test_of_one_document_the_first_windows_are_held_out_and_the_report_warns(
    name: str, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    body = " ".join(WORDS) * 400
    (sources.data_dir / name).write_text(body if name.endswith(".txt") else json.dumps({"text": body}))
    text, _ = text_of(sources, dataset=name)
    (domain,) = text.domains
    assert [len(domain.holdout_NT), len(domain.train_NT)] == [3, 4]
    spec = spec_of(tune=tuning("full", **STEPS, dataset=name))
    (tmp_path / "tokens-left").write_bytes(b"of a process that was killed")
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    assert not [*tmp_path.glob("tokens-*")]
    assert any("are of documents that are trained on" in line for line in report.warnings)
    assert [read.documents_held_out for read in report.texts if read.label.startswith("tune/")] == [None]
    # Cut from one stream, as before documents were held out.
    tokens = load_tokens(spec.tune, load(spec, sources).tokenizer, sources, "/tune", Wanted(7, 32))
    assert torch.equal(torch.cat([domain.holdout_NT, domain.train_NT[:]]).flatten(), tokens.ids_T[: 7 * 32])


def test_where_the_others_are_too_few_the_same_documents_are_trained_on(tiny: Path, sources: Sources) -> None:
    rows = [{"text": "the whale and the ship " * 100}, {"text": "a judge"}]
    text, tokenizer = text_of(sources, dataset=write(sources, rows))
    assert words_in(told(text, tokenizer)[1]) == {"whale"}
    assert len(text.warnings) == 1
    assert text.reads[0].documents_held_out is None
    with pytest.raises(DatasetTooShort):
        text_of(sources, dataset="rows.jsonl", batch=40)


def test_rows_that_may_be_parts_of_documents_are_warned_of(tiny: Path, sources: Sources) -> None:
    rows = [{"text": f"the {WORDS[i % 5]} and so on", "page": i // 50} for i in range(400)]
    text, _ = text_of(sources, dataset=write(sources, rows))
    assert ["rows are shorter than windows" in line for line in text.warnings] == [True]
    text, _ = text_of(sources, dataset="rows.jsonl", document_field="page")
    assert text.warnings == []
    assert text.reads[0].documents_held_out == 1


def test_no_more_is_read_than_windows_need(tiny: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "SOUGHT", 2**15)
    long = "the whale and the ship " * 20_000  # more than one piece of the stream
    (sources.data_dir / "long.txt").write_text(long * 3)
    assert text_of(sources, dataset="long.txt")[0].reads[0].tokens < 2**15, "a .txt file is known to be one document"
    rows = [{"text": long, "book": "one"}, {"text": long, "book": "one"}, {"text": "a judge " * 900, "book": "two"}]
    write(sources, rows)
    text, _ = text_of(sources, dataset="rows.jsonl", document_field="book")
    assert text.reads[0].documents == 1, "given up before the end of the first"
    assert len(text.warnings) == 1
    monkeypatch.undo()
    text, tokenizer = text_of(sources, dataset="rows.jsonl", document_field="book")
    assert words_in(told(text, tokenizer)[1]) == {"judge"}


def test_tokens_lie_in_a_file_that_others_read_and_that_goes_with_the_text(
    tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    rows = [{"text": f"the {WORDS[i % 5]} and the {WORDS[i % 3]} " * 7} for i in range(60)]
    spec = spec_of(tune=tuning("full", dataset=write(sources, rows), **STEPS | {"steps": 20}))
    model = load(spec, sources)
    text = training_text("tune", spec.tune, model, sources, tmp_path)
    (file,) = tmp_path.glob("tokens-*")
    sent = pickle.dumps(text.domains)
    assert len(sent) < file.stat().st_size, "windows are not sent, but where they lie"
    other = TuningText(pickle.loads(sent), text.label)
    assert other.digest == text.digest
    for step in (0, 7, 19):
        assert torch.equal(other.batch(spec.tune, step), text.batch(spec.tune, step))
    held = {"vocabulary": model.architecture.vocabulary, "wanted": Wanted(40, 32, held_out=3)}
    read = load_tokens(spec.tune, model.tokenizer, sources, "/tune", **held)
    assert torch.equal(text.domains[0].train_NT[:].flatten(), read.ids_T[read.starts[-1] :][: 40 * 32])
    assert len(read.starts) == 3, "two that are held out, and all others as one"
    assert read.report is not None
    assert read.report.documents > 20
    del text
    assert not [*tmp_path.glob("tokens-*")]


def test_by_hand() -> None:
    # Documents 0, 1, 0, 2 in stretches of 5, 4, 6 and 8 tokens; windows of 3: the first two are of 0 and 1.
    tokens = Tokens(torch.arange(23), (), (0, 5, 9, 15), (0, 1, 0, 2))
    found = held_out_windows(tokens, 3, holdout=2, least=1, most=9, field="")
    assert found.holdout_NL.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.train_NL[:].tolist() == [[15, 16, 17], [18, 19, 20]]
    assert found.documents == 2
    found = held_out_windows(tokens, 3, holdout=1, least=1, most=9, field="")
    assert found.train_NL[:].tolist() == [[5, 6, 7], [8, 15, 16], [17, 18, 19], [20, 21, 22]]
    found = held_out_windows(tokens, 3, holdout=2, least=3, most=9, field="")
    assert found.documents is None
    assert found.train_NL[:].flatten().tolist() == list(range(6, 21))
