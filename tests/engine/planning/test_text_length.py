"""The length of texts, foreseen without the tokenizer: beside the tokenizer's own, and what is told of it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig

from tests.helpers.hub import client, serving
from tests.helpers.small_models import EXAMPLES, SIZES, SaveModel, spec_of
from workers.engine.errors import DatasetTooShort, InvalidSpec
from workers.engine.files.model_files import TOKENIZER_BYTES, TOKENIZER_DIGITS, read_json
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import random_windows, wanted_of
from workers.engine.planning.plan import plan
from workers.engine.report import PlannedText
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts.vocabulary import vocabulary
from workers.engine.spec import CompressionSpec

BOOKWORM = {"model": {"id": "bookworm-7m"}}
PERPLEXITY = {"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32}
TUNE = {"method": "lora", "dataset": "heldout.txt", "sequence_length": 64}
ROWS = b"".join(b'{"kind": "%s", "text": "of which there is some"}\n' % kind for kind in (b"sea", b"law"))
TEXT = (EXAMPLES / "data/heldout.txt").read_text()


def calibrate(dataset: str = "calibration.txt", **fields: Any) -> dict[str, Any]:
    return {"calibrate": {"dataset": dataset, **fields}}


def texts(spec: CompressionSpec, sources: Sources) -> dict[str, PlannedText]:
    return {text.field: text for text in plan(spec, sources).texts}


def about(spec: CompressionSpec, sources: Sources) -> str:
    """The warning of a text's length, or nothing."""
    return next((warning for warning in plan(spec, sources).warnings if "the job would fail" in warning), "")


@pytest.mark.parametrize("name", ["calibration.txt", "heldout.txt", "heldout.jsonl"])
def test_the_estimate_is_near_the_tokenizers_count(name: str, examples: Sources) -> None:
    spec = spec_of(**BOOKWORM, **calibrate(name))
    assert spec.calibrate is not None
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")
    tokens = len(load_tokens(spec.calibrate, tokenizer, examples, "/calibrate").ids_T)
    assert texts(spec, examples)["/calibrate"].tokens == pytest.approx(tokens, rel=0.03)


def test_the_defaults_ask_for_more_than_the_shipped_text_and_what_is_suggested_fits(examples: Sources) -> None:
    spec = spec_of(**BOOKWORM, **calibrate())
    assert "calibration.txt has about 14" in about(spec, examples)
    assert "`calibrate` reads 128 windows of 2,048, 262,144 tokens" in about(spec, examples)
    suggested = texts(spec, examples)["/calibrate"].suggested
    assert suggested.keys() == {"/calibrate/samples", "/calibrate/sequence_length"}
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")
    for pointer, value in suggested.items():
        better = spec_of(**BOOKWORM, **calibrate(**{pointer.rpartition("/")[2]: value}))
        assert about(better, examples) == ""
        assert better.calibrate is not None
        tokens = load_tokens(better.calibrate, tokenizer, examples, "/calibrate", wanted_of(better.calibrate))
        length, count = better.calibrate.sequence_length, better.calibrate.samples
        assert random_windows(tokens, length, count=count, seed=0, field="").shape == torch.Size([count, length])


def test_each_kind_of_text_is_looked_at(examples: Sources) -> None:
    spec = spec_of(
        **BOOKWORM,
        **calibrate(samples=8, sequence_length=64),
        evaluate=[
            PERPLEXITY,
            {**PERPLEXITY, "samples": 10_000},
            {"method": "size"},
            {"method": "agreement", "dataset": "heldout.txt"},
        ],
        tune={**TUNE, "batch": 4096, "holdout": 1000},
    )
    found = texts(spec, examples)
    assert {field: (text.windows, text.window_tokens) for field, text in found.items()} == {
        "/calibrate": (8, 64),
        "/evaluate/0": (1, 32),
        "/evaluate/1": (10_000, 32),
        "/evaluate/3": (32, 512),
        "/tune": (5096, 64),
    }
    assert {field for field, text in found.items() if text.suggested} == {"/evaluate/1", "/tune"}
    assert found["/evaluate/1"].suggested["/evaluate/1/samples"] < 10_000
    assert set(found["/tune"].suggested) == {"/tune/sequence_length"}
    found_of_magnitude = texts(spec_of(**BOOKWORM, **calibrate(), score={"method": "magnitude"}), examples)
    assert found_of_magnitude == {}, "this calibration text is not read"


@pytest.mark.parametrize(
    ("name", "content", "tokens"),
    [
        ("a.txt.gz", gzip.compress(TEXT[:20_000].encode()), 5500),
        ("a.jsonl", json.dumps({"text": TEXT[:20_000]}).encode(), 5500),
        ("a.jsonl.gz", gzip.compress(json.dumps({"text": [TEXT[:10_000], None, TEXT[10_000:20_000]]}).encode()), 5500),
        ("a.txt.zst", b"which the API cannot read", None),
        ("a.parquet", b"nor this", None),
        ("a.jsonl", b'{"text": [{"role": "user", "content": "a conversation"}]}', None),
        ("a.jsonl", json.dumps({"text": "a row that is longer than what is looked at " * 30_000}).encode(), None),
    ],
    ids=[
        "gzip",
        "rows",
        "gzipped_rows",
        "zstd",
        "parquet",
        "turns",
        "long_row",
    ],
)
def test_each_format(name: str, content: bytes, tokens: int | None, tiny: Path, sources: Sources) -> None:
    (sources.data_dir / name).write_bytes(content)
    spec = spec_of(**calibrate(name, samples=1, sequence_length=8))
    found = texts(spec, sources)["/calibrate"].tokens
    assert found == (tokens if tokens is None else pytest.approx(tokens, rel=0.1))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", "", "has 0 bytes, too few for 128 windows of 64 tokens"),
        ("empty.jsonl", "", "has 0 bytes"),
        ("line.txt", "One line is too little.\n", "has 24 bytes, too few for 128 windows"),
    ],
)
def test_what_is_certainly_too_short_is_refused(
    name: str, content: str, words: str, tiny: Path, sources: Sources
) -> None:
    (sources.data_dir / name).write_text(content)
    with pytest.raises(DatasetTooShort, match=words) as refused:
        plan(spec_of(**calibrate(name, samples=128, sequence_length=64)), sources)
    assert refused.value.field == "/calibrate"
    with pytest.raises(DatasetTooShort) as refused:
        plan(spec_of(evaluate=[{**PERPLEXITY, "dataset": name, "samples": 32}]), sources)
    assert refused.value.field == "/evaluate/0"


@pytest.mark.parametrize(
    ("name", "content", "changes", "pointer", "words"),
    [
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}'),
            {},
            "/tune/domains/column",
            "line 1 has no name of a domain in",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(ROWS + b'{"kind": 1}'),
            {},
            "/tune/domains/column",
            "line 3 has no name of a domain",
        ),
        ("a.txt.gz", gzip.compress(b"a text"), {}, "/tune/domains", "is one text, without rows of a domain"),
        ("a.jsonl.gz", ROWS, {}, "/tune/dataset", "cannot be decompressed"),
        ("a.jsonl.gz", gzip.compress(ROWS), {"domains": None, "text_field": "body"}, "/tune/text_field", "kind, text"),
        ("a.jsonl.gz", gzip.compress(b"no JSON"), {"domains": None}, "/tune/dataset", "line 1 is not JSON"),
        ("a.txt.gz", gzip.compress(b"\xff\xff"), {"domains": None}, "/tune/dataset", "is not UTF-8"),
        ("a.txt.gz", gzip.compress(ROWS)[:-9], {"domains": None}, "/tune/dataset", "cannot be decompressed"),
    ],
    ids=["no column", "no text in it", "one text", "not packed", "no text", "no JSON", "no UTF-8", "cut"],
)
def test_a_packed_text_that_does_not_begin_as_it_should_is_refused(
    name: str,
    content: bytes,
    changes: dict[str, Any],
    pointer: str,
    words: str,
    tiny: Path,
    sources: Sources,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # the API has none
    (sources.data_dir / name).write_bytes(content)
    domains = {"column": "kind", "shares": {"sea": 1, "law": 1}}
    with pytest.raises(InvalidSpec, match=words) as refused:
        plan(spec_of(tune={**TUNE, "dataset": name, "domains": domains, **changes}), sources)
    assert refused.value.field == pointer


@pytest.mark.parametrize("domains", [None, {"column": "kind", "shares": {"sea": 1, "law": 1}}], ids=["all", "domains"])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_packed_text_that_the_api_reads_or_cannot_read_is_a_jobs_matter(
    name: str, domains: Any, tiny: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (sources.data_dir / name).write_bytes(gzip.compress(ROWS))
    assert plan(spec_of(tune={**TUNE, "dataset": name, "domains": domains}), sources)


def normalized(folder: Path, normalizer: Any) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "normalizer": normalizer}))


@pytest.mark.parametrize(
    "normalizer", [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": "."}, "content": "no"}]
)
def test_a_tokenizer_that_may_make_more_of_a_text_is_warned_of_only(
    normalizer: dict[str, Any], tiny: Path, sources: Sources
) -> None:
    normalized(tiny, normalizer)
    (sources.data_dir / "line.txt").write_text("One line is too little.\n")
    assert "line.txt has about " in about(spec_of(**calibrate("line.txt", samples=128, sequence_length=64)), sources)


def test_a_model_without_a_vocabulary_that_can_be_read_is_guessed_at(save_model: SaveModel, sources: Sources) -> None:
    folder = save_model("tiny", LlamaConfig(**SIZES))
    (folder / "tokenizer.json").write_text("{}")
    spec = spec_of(**calibrate(samples=1000, sequence_length=64))
    found = texts(spec, sources)["/calibrate"]
    assert found.tokens == pytest.approx(10_000, rel=0.02)  # four bytes each
    assert "about 10,000 tokens" in about(spec, sources)


@pytest.mark.parametrize(
    ("model", "text", "count"),
    [
        (
            {"type": "Unigram", "vocab": [["\u2581the", -1.0], ["\u2581", -2.0], ["c", -3.0], ["at", -3.0]]},
            " the cat",
            4,
        ),
        ({"type": "BPE", "vocab": {"\u2581a": 0, "\u2581": 1, "b": 2}}, " a b", 3),
        ({"type": "BPE", "vocab": {"\u0120a": 0, "\u0120": 1, "\u00c3\u00a9": 2}}, " a \u00e9", 3),
        ({"type": "BPE", "vocab": {"a": 0}}, "a\u00e9", 3),  # by its bytes
    ],
)
def test_vocabularies_are_written_in_different_ways(
    model: dict[str, Any], text: str, count: int, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))
    found = vocabulary(tmp_path)
    assert found is not None
    assert found.count(text) == count


@pytest.mark.parametrize(
    "document",
    [{}, {"model": None}, {"model": {"vocab": 1}}, {"model": {"vocab": [1, []]}}, {"model": {"vocab": {"": 0}}}],
)
def test_a_strange_tokenizer_has_none(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert read_json(tmp_path, "tokenizer.json", TOKENIZER_BYTES, TOKENIZER_DIGITS) == document
    assert vocabulary(tmp_path) is None


ON_THE_HUB = """
import json, sys
from pathlib import Path
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources, download, resolve_model
from workers.engine.spec import CompressionSpec
sources, spec = Sources(Path("none"), Path(sys.argv[1])), CompressionSpec.model_validate_json(sys.argv[2])
before = plan(spec, sources).texts
download(resolve_model(spec.model, sources))
print(json.dumps({"before": before[0].tokens, "after": plan(spec, sources).texts[0].tokens}))
"""


def test_the_vocabulary_of_a_hub_model_is_that_in_the_cache(examples: Sources, tmp_path: Path) -> None:
    spec = spec_of(model={"id": "org/good"}, **calibrate())
    with serving() as hub:
        data = str(examples.data_dir)
        found = client(ON_THE_HUB, data, spec.model_dump_json(), endpoint=hub, home=tmp_path)
    assert found["before"] == (EXAMPLES / "data/calibration.txt").stat().st_size // 4
    assert found["after"] == texts(spec_of(**BOOKWORM, **calibrate()), examples)["/calibrate"].tokens
