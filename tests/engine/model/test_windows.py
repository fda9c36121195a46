"""Texts in each form, and the windows cut from them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pyarrow
import pytest
import torch
from pyarrow import parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tests.helpers import hub
from tests.helpers.small_models import EXAMPLES
from workers.engine.contracts.refs import DataRef
from workers.engine.contracts.texts import Tokens
from workers.engine.errors import DatasetNotFound, DatasetTooShort, HubUnavailable, InvalidSpec
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import consecutive_windows, random_windows
from workers.engine.sources.resolve import Sources


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")


def ids(tokenizer: PreTrainedTokenizerBase, sources: Sources, **ref: str) -> list[int]:
    return load_tokens(DataRef(**ref), tokenizer, sources, "/calibrate").ids_T.tolist()


def test_every_form_gives_the_same_tokens(tokenizer: PreTrainedTokenizerBase, sources: Sources) -> None:
    folder = sources.data_dir
    (folder / "a.txt").write_text("\n\n".join(hub.DOCUMENTS))
    (folder / "a.jsonl").write_text("\n".join(json.dumps({"id": 1, "text": d}) for d in hub.DOCUMENTS) + "\n\n")
    parquet.write_table(pyarrow.table({"text": [hub.DOCUMENTS[0], None, hub.DOCUMENTS[1]]}), folder / "a.parquet")
    parquet.write_table(pyarrow.table({"body": hub.DOCUMENTS}), folder / "b.parquet")
    expected = tokenizer("\n\n".join(hub.DOCUMENTS), add_special_tokens=False)["input_ids"]
    assert len(expected) > 10
    for dataset in ("a.txt", "a.jsonl", "a.parquet"):
        assert ids(tokenizer, sources, dataset=dataset) == expected
    assert ids(tokenizer, sources, dataset="b.parquet", text_field="body") == expected


@pytest.mark.parametrize(
    ("name", "content", "error", "field", "message"),
    [
        ("none.txt", None, DatasetNotFound, "/calibrate/dataset", "no file none.txt"),
        ("a.csv", b"text", DatasetNotFound, "/calibrate/dataset", "a.csv is neither"),
        ("a.txt", b"\xff\xfe\x00", InvalidSpec, "/calibrate/dataset", "not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{', InvalidSpec, "/calibrate/dataset", "line 2 is not JSON"),
        ("a.jsonl", b'{"body": "x"}', InvalidSpec, "/calibrate/text_field", "its columns are body"),
        ("a.jsonl", b"[1]", InvalidSpec, "/calibrate/text_field", "its columns are none"),
        ("a.parquet", b"PAR1 not", InvalidSpec, "/calibrate/dataset", "not a parquet file"),
    ],
)
def test_bad_files_are_told(
    name: str,
    content: bytes | None,
    error: type[Exception],
    field: str,
    message: str,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
) -> None:
    if content is not None:
        (sources.data_dir / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        ids(tokenizer, sources, dataset=name)
    assert caught.value.field == field  # type: ignore[attr-defined]


def test_parquet_without_text_column(tokenizer: PreTrainedTokenizerBase, sources: Sources) -> None:
    parquet.write_table(pyarrow.table({"text": [1, 2]}), sources.data_dir / "a.parquet")
    with pytest.raises(InvalidSpec, match="no text in a column 'text'; its columns are text"):
        ids(tokenizer, sources, dataset="a.parquet")


def test_a_link_out_of_the_folder_is_not_followed(
    tokenizer: PreTrainedTokenizerBase, sources: Sources, tmp_path: Path
) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (sources.data_dir / "a.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(DatasetNotFound):
        ids(tokenizer, sources, dataset="a.txt")


def test_the_hub_is_away(tokenizer: PreTrainedTokenizerBase, sources: Sources) -> None:
    with pytest.raises(HubUnavailable, match="Salesforce/wikitext") as caught:
        ids(tokenizer, sources, dataset="Salesforce/wikitext")
    assert caught.value.retryable


READ = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
from workers.engine.model.reading import load_tokens
from workers.engine.errors import EngineError
from workers.engine.contracts.refs import DataRef
from workers.engine.sources.resolve import Sources
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
found = {}
for number, ref in enumerate(json.loads(sys.argv[2])):
    try:
        tokens = load_tokens(DataRef(**ref), tokenizer, Sources(Path("."), Path(".")), "/calibrate")
        found[number] = tokenizer.decode(tokens.ids_T)
    except EngineError as error:
        found[number] = [error.code, error.field]
print(json.dumps(found))
"""


def test_hub_dataset(tmp_path: Path) -> None:
    refs = [
        {},
        {"dataset": "org/none"},
        {"revision": "nowhere"},
        {"subset": "none"},
        {"split": "none"},
        {"text_field": "body"},
    ]
    texts = json.dumps([{"dataset": "org/texts"} | ref for ref in refs])
    with hub.serving() as endpoint:
        found = hub.client(READ, str(hub.BOOKWORM), texts, endpoint=endpoint, home=tmp_path)
    assert list(found.values()) == [
        "\n\n".join(hub.DOCUMENTS),
        ["dataset_not_found", "/calibrate/dataset"],
        ["dataset_not_found", "/calibrate/revision"],
        ["dataset_not_found", "/calibrate/dataset"],
        ["dataset_not_found", "/calibrate/dataset"],
        ["invalid_spec", "/calibrate/text_field"],
    ]


def counting(length: int) -> Tokens:
    return Tokens(torch.arange(length))


def test_consecutive_windows() -> None:
    assert consecutive_windows(counting(8), 3, count=None, field="").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert consecutive_windows(counting(8), 3, count=1, field="").tolist() == [[0, 1, 2]]


def test_random_windows_are_stretches_of_the_text_decided_by_the_seed() -> None:
    windows_NL = random_windows(counting(1000), 10, count=50, seed=3, field="")
    starts_N = windows_NL[:, 0]
    assert torch.equal(windows_NL, starts_N[:, None] + torch.arange(10))
    assert starts_N.unique().numel() > 40
    assert torch.equal(windows_NL, random_windows(counting(1000), 10, count=50, seed=3, field=""))
    assert not torch.equal(windows_NL, random_windows(counting(1000), 10, count=50, seed=4, field=""))


def test_random_windows_reach_both_ends() -> None:
    starts = random_windows(counting(40), 10, count=4, seed=0, field="")[:, 0].tolist()
    for seed in range(1, 200):
        starts += random_windows(counting(40), 10, count=4, seed=seed, field="")[:, 0].tolist()
    assert (min(starts), max(starts)) == (0, 30)


@pytest.mark.parametrize("draw", ["consecutive", "random"])
def test_too_short_a_text_says_how_much_it_would_hold(draw: str) -> None:
    cut = partial(random_windows, seed=0) if draw == "random" else consecutive_windows
    with pytest.raises(DatasetTooShort, match="3 windows of 10 tokens need 30 tokens; the text has 29, enough for 2"):
        cut(counting(29), 10, count=3, field="/calibrate")
    with pytest.raises(DatasetTooShort, match="enough for 0"):
        consecutive_windows(counting(9), 10, count=None, field="/evaluate/0")
