"""The reader: every packing of the same documents gives the same windows, and no more is read than is wanted."""

from __future__ import annotations

import contextlib
import errno
import gzip
import html
import io
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.helpers.reports import report_of
from tests.helpers.small_models import EXAMPLES, SaveModel, load, spec_of
from workers.engine.contracts.refs import DataRef
from workers.engine.contracts.texts import Wanted
from workers.engine.errors import EngineError, InvalidSpec, StorageUnavailable, UnsupportedModel
from workers.engine.methods.evaluate import harness
from workers.engine.methods.evaluate.perplexity import PerplexityParams
from workers.engine.model import windows as data
from workers.engine.model.reading import load_tokens
from workers.engine.model.windows import measured_windows, opening_ids, random_windows, wanted_of
from workers.engine.reporting.model_card import render as render_card
from workers.engine.reporting.page import render as render_page
from workers.engine.sources.resolve import Sources
from workers.engine.sources.texts import stream
from workers.engine.sources.texts.documents import Document
from workers.engine.sources.texts.rows import parquet_rows
from workers.engine.stages.calibrate import calibration, refuse_unknown_tokens

DOCUMENTS = [
    "The first of them.\nTwo lines.",
    "A second one, longer than the first, with “quotes”.",
    "Third: 1 2 3.",
] * 40
MIXED = """def f(x):
    return {"a": [1, 2,  3]}   # a comment\t\twith tabs


It's the *best* of times -- "he said", don't you'll we've 1234567 3.14159.\r\nA line. \n \n   \nEnd
你好，世界。这是一个没有空格的句子，里面有标点符号！日本語の文章です。한국어 문장입니다.
naïve café Zürich e\u0301 \u00a0nbsp\u2028separator\u2029 😀😀👩‍👩‍👧 <s>special</s> aaaaaaaaaaaaaaaaaaaaaaaaa
"""


@pytest.fixture(scope="module")
def bookworm() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")


def trained(model: Any, trainer: Any, **parts: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of some hundred tokens."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    text = (EXAMPLES / "data/calibration.txt").read_text()[:30_000]
    tokenizer.train_from_iterator([text, MIXED * 3], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def kinds() -> Iterator[tuple[str, Callable[[], PreTrainedTokenizerBase]]]:
    """One of each kind that models have, by what they do before merging."""
    byte_level = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "vocab_size": 700, "show_progress": False}
    yield "bookworm", lambda: AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")
    yield (
        "Llama 3, Qwen: composed characters, digits by three, line ends with what stands before",
        lambda: trained(
            models.BPE(),
            trainers.BpeTrainer(**byte_level),
            normalizer=normalizers.NFC(),
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, False, False)]
            ),
        ),
    )
    yield (
        "Llama 2, Gemma: a space put before, whole text merged at once",
        lambda: trained(
            models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"),
            trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>"], show_progress=False),
            normalizer=normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
            pre_tokenizer=pre_tokenizers.Split("▁", "merged_with_next"),
            decoder=decoders.Metaspace(),
        ),
    )
    yield (
        "SentencePiece: unigrams of words",
        lambda: trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
            normalizer=normalizers.NFKC(),
            pre_tokenizer=pre_tokenizers.Metaspace(),
        ),
    )


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in kinds()])
def test_ids_are_those_of_the_whole_text(
    make: Callable[[], PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make()
    text = (EXAMPLES / "data/heldout.txt").read_text()[:20_000] + MIXED * 10
    expected = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for size in (256, 1000):
        monkeypatch.setattr(stream, "PIECE", size)
        found = list(stream.pieces([Document(0, [text[:7], text[7:9000], text[9000:]])], tokenizer))
        assert len(found) > len(text) // size / 2
        assert [i for piece in found for i in piece.encoded.ids_T.tolist()] == expected


def test_a_text_without_a_place_to_cut_is_read_too(
    bookworm: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 256)
    found = list(stream.pieces([Document(0, ["ab" * 5000])], bookworm))
    assert bookworm.decode([i for piece in found for i in piece.encoded.ids_T.tolist()]) == "ab" * 5000
    assert max(piece.encoded.characters for piece in found) <= 256 + stream.CONTEXT


def test_golden_windows(bookworm: PreTrainedTokenizerBase, examples: Sources) -> None:
    """The first twelve windows of each of the five books, as the authors' code was given them."""
    with np.load(EXAMPLES.parent / "tests/golden/tokens.npz") as golden:
        expected = torch.from_numpy(golden["heldout"].astype(np.int64))
    params = PerplexityParams(dataset="heldout.jsonl", sequence_length=512, per_document=12)

    def read(ref: DataRef, wanted: Wanted) -> data.Tokens:
        return load_tokens(ref, bookworm, examples, "/evaluate/0", wanted)

    found = measured_windows(params, read, "/evaluate/0")
    assert torch.equal(found.ids_NL, expected)
    assert found.documents == tuple(book for book in range(5) for _ in range(12))


def test_the_shipped_texts_give_the_windows_they_always_gave(
    bookworm: PreTrainedTokenizerBase, examples: Sources
) -> None:
    """Drawn from the whole text, as before reading stopped early: what published figures were calibrated on."""
    text = (EXAMPLES / "data/calibration.txt").read_text()
    ids_T = torch.tensor(bookworm(text, add_special_tokens=False, verbose=False)["input_ids"])
    for samples, length in ((4, 32), (64, 512)):
        spec = spec_of(calibrate={"dataset": "calibration.txt", "samples": samples, "sequence_length": length})
        assert spec.calibrate is not None
        tokens = load_tokens(spec.calibrate, bookworm, examples, "/calibrate", wanted_of(spec.calibrate))
        assert torch.equal(tokens.ids_T, ids_T)


# -- packing -----------------------------------------------------------------------------------------------------------


def pack(folder: Path, rows: list[Any], column: str = "text") -> list[str]:
    """The same rows in every file of rows that is read; their names."""
    lines = "".join(json.dumps({column: row}) + "\n" for row in rows)
    escaped = "".join(json.dumps({"id": "\u2028", column: row}, ensure_ascii=False) + "\r\n" for row in rows)
    (folder / "a.jsonl").write_bytes(lines.encode())
    (folder / "marked.jsonl").write_bytes(b"\xef\xbb\xbf" + escaped.encode())
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines[:50].encode()) + gzip.compress(lines[50:].encode()))
    with pyarrow.output_stream(str(folder / "a.jsonl.zst"), compression="zstd") as file:
        file.write(lines.encode())
    names = ["a.jsonl", "marked.jsonl", "a.jsonl.gz", "a.jsonl.zst"]
    table = pyarrow.table({"n": range(len(rows)), column: rows})
    parquet.write_table(table, folder / "a.parquet")
    parquet.write_table(table, folder / "groups.parquet", row_group_size=7, compression="zstd")
    names += ["a.parquet", "groups.parquet"]
    if all(row is None or isinstance(row, str) for row in rows):
        for kind in (
            pyarrow.large_string(),
            pyarrow.string_view(),
            pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
        ):
            name = f"{str(kind).partition('<')[0]}.parquet"
            try:
                parquet.write_table(
                    pyarrow.table({column: pyarrow.array(rows, pyarrow.string()).cast(kind)}), folder / name
                )
            except pyarrow.ArrowNotImplementedError:  # this release cannot write views
                continue
            names.append(name)
    return names


def windows(
    name: str, tokenizer: PreTrainedTokenizerBase, sources: Sources, **ref: Any
) -> tuple[torch.Tensor, data.Tokens]:
    spec = spec_of(calibrate={"dataset": name, "samples": 6, "sequence_length": 16, **ref})
    assert spec.calibrate is not None
    tokens = load_tokens(spec.calibrate, tokenizer, sources, "/calibrate", wanted_of(spec.calibrate))
    return random_windows(tokens, 16, count=6, seed=1, field="/calibrate"), tokens


def test_packing_changes_nothing(
    bookworm: PreTrainedTokenizerBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ("LEAST_CHARACTERS", "CHARACTERS_PER_TOKEN"):  # so that reading stops in the middle
        monkeypatch.setattr(data, size, 20)
    monkeypatch.setattr(stream, "PIECE", 500)
    (sources.data_dir / "a.txt").write_text("\n\n".join(DOCUMENTS))
    expected, read = windows("a.txt", bookworm, sources)
    assert len(read.ids_T) < len(bookworm("\n\n".join(DOCUMENTS))["input_ids"]) - 100
    (sources.data_dir / "ends.txt").write_bytes(b"\xef\xbb\xbf" + "\n\n".join(DOCUMENTS).replace("\n", "\r\n").encode())
    (sources.data_dir / "a.txt.gz").write_bytes(gzip.compress("\n\n".join(DOCUMENTS).encode()))
    rows: list[Any] = [None, *DOCUMENTS[:50], "", " \n", *DOCUMENTS[50:]]
    for name in ["ends.txt", "a.txt.gz", *pack(sources.data_dir, rows)]:
        found, tokens = windows(name, bookworm, sources)
        assert torch.equal(found, expected), name
        assert torch.equal(tokens.ids_T, read.ids_T), name


def test_what_was_skipped_and_replaced_is_counted(bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    rows = [None, "", *DOCUMENTS, "half a pair \ud83d here", " ", "a whole one \ud83d\ude00"]
    (sources.data_dir / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (sources.data_dir / "a.txt").write_bytes(b"encoded half \xed\xa0\xbd of a pair")
    report = load_tokens(DataRef(dataset="a.jsonl"), bookworm, sources, "/tune").report
    assert report is not None
    assert (report.rows_skipped, report.characters_replaced, report.documents) == (3, 1, len(DOCUMENTS) + 2)
    assert report.label == "tune/a.jsonl"
    tokens = load_tokens(DataRef(dataset="a.txt"), bookworm, sources, "/tune")
    assert bookworm.decode(tokens.ids_T) == "encoded half \ufffd of a pair"


def test_lists_are_documents_and_columns_may_have_any_name(bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    rows = [["One.", "Two.", None, ""], [], ["Three."], None]
    for name in pack(sources.data_dir, rows, "the text"):
        tokens = load_tokens(DataRef(dataset=name, text_field="the text"), bookworm, sources, "")
        assert bookworm.decode(tokens.ids_T) == "One.\n\nTwo.\n\nThree.", name
        assert tokens.report is not None
        assert (tokens.report.documents, tokens.report.rows_skipped) == (2, 2)


TURNS = [
    [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "text", "text": "Why?"}]}],
]
SHAREGPT = [[{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}]]
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


@pytest.fixture
def chatty() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_conversations_go_through_the_chat_template(chatty: PreTrainedTokenizerBase, sources: Sources) -> None:
    for column, rows in (("messages", TURNS[:1]), ("conversations", SHAREGPT)):
        for name in pack(sources.data_dir, [*rows, None, []], column):
            tokens = load_tokens(DataRef(dataset=name, text_field=column), chatty, sources, "")
            assert chatty.decode(tokens.ids_T) == "[user] Who?\n[assistant] Me.\n", name
    (sources.data_dir / "parts.jsonl").write_text(json.dumps({"messages": TURNS[1]}))
    tokens = load_tokens(DataRef(dataset="parts.jsonl", text_field="messages"), chatty, sources, "")
    assert chatty.decode(tokens.ids_T) == "[system] Be short.\n[user] Why?\n"


# -- refusals lead on --------------------------------------------------------------------------------------------------


def refused(name: str, tokenizer: PreTrainedTokenizerBase, sources: Sources, **ref: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        load_tokens(DataRef(dataset=name, **ref), tokenizer, sources, "/calibrate")
    return caught.value


def test_a_hint_leads_to_another_state(
    bookworm: PreTrainedTokenizerBase, chatty: PreTrainedTokenizerBase, sources: Sources
) -> None:
    folder = sources.data_dir
    (folder / "a.jsonl").write_text('{"body": "x", "n": 1}\n{"text": "y"}\n')
    first = refused("a.jsonl", bookworm, sources)
    assert (first.field, first.hint) == ("/calibrate/text_field", "set `text_field` to a column that holds text: body")
    second = refused("a.jsonl", bookworm, sources, text_field="body")  # not: set it to `text`, where it came from
    assert second.hint == "give every row a text in 'body', or leave the row out"
    parquet.write_table(pyarrow.table({"text": [1], "n": [2]}), folder / "a.parquet")
    assert "as a column of its own" in refused("a.parquet", bookworm, sources).hint
    (folder / "chat.jsonl").write_text(json.dumps({"messages": TURNS[0]}))
    assert "messages" in refused("chat.jsonl", bookworm, sources).hint
    without = refused("chat.jsonl", bookworm, sources, text_field="messages")
    assert ("no chat template" in without.message, "as plain text" in without.hint) == (True, True)
    chatty.chat_template = "{{ raise_exception('roles must alternate') }}"
    assert "roles must alternate" in refused("chat.jsonl", chatty, sources, text_field="messages").message
    unnamed = refused("chat.jsonl", chatty, sources, text_field="messages", document_field="book")
    assert unnamed.field == "/calibrate/document_field"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", b"not compressed", "cannot be decompressed"),
        ("a.jsonl.zst", b"not compressed", "cannot be decompressed"),
        ("a.txt.gz", gzip.compress(b"word " * 100_000)[:-300], "cannot be decompressed|not UTF-8"),
        ("a.txt", "Schön".encode("latin-1"), "a.txt is not UTF-8"),
        ("a.txt", "Text".encode("utf-16"), "byte order mark of UTF-16"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "' + b"x" * 2**24 + b'"}', "longer than 16 MiB"),
    ],
    ids=["gz", "zst", "cut", "latin-1", "utf-16", "deep", "digits", "long"],
)  # fmt: skip
def test_damaged_files_are_told(
    name: str, content: bytes, message: str, bookworm: PreTrainedTokenizerBase, sources: Sources
) -> None:
    (sources.data_dir / name).write_bytes(content)
    with pytest.raises(InvalidSpec, match=message):
        load_tokens(DataRef(dataset=name), bookworm, sources, "/calibrate")


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_disk_that_fails_is_no_fault_of_the_file(
    name: str, bookworm: PreTrainedTokenizerBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is tried again then."""

    class Failing(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    (sources.data_dir / name).write_bytes(b"")
    monkeypatch.setattr(Path, "open", lambda *_, **__: Failing())
    monkeypatch.setattr(parquet, "read_schema", lambda _: Failing().read())
    with pytest.raises(StorageUnavailable) as raised:
        load_tokens(DataRef(dataset=name), bookworm, sources, "/calibrate")
    assert (raised.value.retryable, raised.value.field) == (True, "/calibrate/dataset")


def test_columns_that_cannot_be_read_are_told(bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    raw = pyarrow.array([b"\xff\xfe"])
    no_text = pyarrow.StringArray.from_buffers(1, *raw.buffers()[1:])
    late = pyarrow.array([2**62], pyarrow.timestamp("us"))
    tables = {
        "utf-8": pyarrow.table({"text": no_text}),
        "several columns 'text'": pyarrow.Table.from_arrays([no_text, no_text], names=["text", "text"]),
        "date value out of range": pyarrow.table({"text": late}),
        "has no text in a column 'text'; its columns are when, raw": pyarrow.Table.from_arrays(
            [late, no_text, pyarrow.array(["x"])], names=["when", "raw", "raw"]
        ),
        "days=": pyarrow.table({"text": pyarrow.array([2**30], pyarrow.date32())}),
    }
    for words, table in tables.items():
        parquet.write_table(table, sources.data_dir / "a.parquet")
        assert words in refused("a.parquet", bookworm, sources).message


def test_bits_turned_in_a_parquet_file_are_told(bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    table = pyarrow.table({"text": pyarrow.array(["a text", "another", "a text"]).dictionary_encode()})
    path, rng = sources.data_dir / "a.parquet", random.Random(0)
    parquet.write_table(table, path)
    sound = path.read_bytes()
    for _ in range(600):
        turned = bytearray(sound)
        for _ in range(rng.choice([1, 2, 5])):
            turned[rng.randrange(len(turned))] ^= 1 << rng.randrange(8)
        path.write_bytes(turned)
        with contextlib.suppress(InvalidSpec):
            list(parquet_rows(path, ("text",), "/calibrate/dataset"))


@pytest.mark.parametrize(
    "turn",
    [
        {"role": ["user"], "content": "Who?"},
        {"role": {"a": 1}, "content": "Who?"},
        {"from": 5, "value": "Who?"},
        {"role": "user", "content": 5},
        {"role": "user", "content": {"text": "Who?"}},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "user", "content": [["Who?"]]},
    ],
)
def test_turns_that_are_no_text_are_told(
    turn: dict[str, Any], chatty: PreTrainedTokenizerBase, sources: Sources
) -> None:
    (sources.data_dir / "a.jsonl").write_text(json.dumps({"messages": [turn]}))
    assert "something else than text" in refused("a.jsonl", chatty, sources, text_field="messages").message


def test_a_file_that_cannot_be_opened_is_told(
    bookworm: PreTrainedTokenizerBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another user's: root reads those too."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("a.txt", "a.jsonl.gz"):
        (sources.data_dir / name).touch()
    monkeypatch.setattr(Path, "open", refuse)
    for name in ("a.txt", "a.jsonl.gz"):
        assert refused(name, bookworm, sources).message == f"{name} cannot be read: Permission denied"


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_no_more_is_read_than_is_wanted(name: str, bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    """64 MB in one line, which unpack from kilobytes: a few windows take a few pieces of it."""
    line = b"It was the best of times, it was the worst of times, " * 2**20
    if name == "a.txt":
        (sources.data_dir / name).write_bytes(line)
    else:
        with pyarrow.output_stream(
            str(sources.data_dir / name), compression={"gz": "gzip", "zst": "zstd"}[name[6:]]
        ) as file:
            file.write(line)
    del line
    asked = Wanted(4, 64)
    tracemalloc.start()
    tokens = load_tokens(DataRef(dataset=name), bookworm, sources, "", asked)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 4 * 64 <= len(tokens.ids_T) <= stream.PIECE
    assert peak < 30 * 2**20


def test_a_batch_of_a_parquet_file_is_small(bookworm: PreTrainedTokenizerBase, sources: Sources) -> None:
    """4 GB, were every row given its copy of the one text that the file holds once."""
    text = "It was the best of times. " * 40_000
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4000, pyarrow.int32()), pyarrow.array([text]))
    parquet.write_table(pyarrow.table({"text": column}), sources.data_dir / "a.parquet")
    before = pyarrow.total_allocated_bytes()
    tokens = load_tokens(DataRef(dataset="a.parquet"), bookworm, sources, "", Wanted(4, 64))
    assert len(tokens.ids_T) <= stream.PIECE
    assert pyarrow.default_memory_pool().max_memory() - before < 200 * 2**20


# -- documents of windows ----------------------------------------------------------------------------------------------


def windows_of(tokens: data.Tokens, length: int, count: int | None = None, per_document: int | None = None) -> Any:
    params = PerplexityParams(dataset="a.txt", sequence_length=length, samples=count, per_document=per_document)
    return measured_windows(params, lambda ref, wanted: tokens, "/evaluate/0")


def test_a_window_is_of_the_document_that_most_of_it_is_of() -> None:
    tokens = data.Tokens(torch.arange(32), starts=(0, 5, 9, 27), documents=(0, 1, 0, 2))
    # 0..8: five of document 0, three of 1; 8..16: one of 1, seven of 0; 16..24 all of 0; 24..32: three of 0, five of 2.
    assert windows_of(tokens, 8).documents == (0, 0, 0, 2)


def test_windows_of_each_document() -> None:
    tokens = data.Tokens(torch.arange(60), starts=(0, 25, 40), documents=(0, 1, 2))
    found = windows_of(tokens, 8, per_document=2)
    assert found.ids_NL[:, 0].tolist() == [0, 8, 25, 40, 48]
    assert found.documents == (0, 0, 1, 2, 2)


def test_documents_are_known_by_their_column_and_reading_stops(
    bookworm: PreTrainedTokenizerBase, sources: Sources
) -> None:
    """Rows of one book that follow one another are one stretch of text."""
    rows = [{"book": book, "text": "A paragraph of some words. " * 4} for book in "aaabbbccc" for _ in range(10)]
    (sources.data_dir / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ref = PerplexityParams(
        dataset="a.jsonl", document_field="book", sequence_length=32, samples=6, per_document=2
    )  # fmt: skip
    found = measured_windows(ref, lambda r, wanted: load_tokens(r, bookworm, sources, "", wanted), "")
    assert found.documents == (0, 0, 1, 1, 2, 2)
    rowwise = ref.model_copy(update={"document_field": None, "per_document": 1})
    found = measured_windows(rowwise, lambda r, wanted: load_tokens(r, bookworm, sources, "", wanted), "")
    assert found.documents == (0, 1, 2, 3, 4, 5)


def test_page_and_card_say_how_texts_were_read_and_what_intervals_are_about() -> None:
    read = {"documents": 5, "tokens": 1234, "opening": ["<s>"], "rows_skipped": 2, "characters_replaced": 1}
    known, alone = (
        {"name": f"perplexity/{over}", "unit": "perplexity", "higher_is_better": False, "dense": 1.0, "pruned": 2.0}
        | {"ratio": 2.0, "difference_stderr": 0.1, "interval_over": over}
        for over in ("documents", "text")
    )
    report = report_of(texts=[{"label": "calibrate/a.jsonl", **read}], metrics=[known, alone])
    for shown in (render_page(report), render_card(report)):
        text = " ".join(html.unescape(shown).split())
        assert (
            "5 documents joined by empty lines, 1,234 tokens read; every window begins with <s>; "
            "rows without text, left out: 2; lone surrogates, replaced by U+FFFD: 1"
        ) in text
        assert "Errors are over documents, and hold for others like them." in text
        assert "That of perplexity/text is about this text alone" in text


# -- the model's own token ---------------------------------------------------------------------------------------------


def with_bos() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(EXAMPLES / "models/bookworm-7m")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def test_auto_does_what_the_tokenizer_does(bookworm: PreTrainedTokenizerBase) -> None:
    assert opening_ids(with_bos(), "auto", "") == (0,)
    assert opening_ids(bookworm, "auto", "") == ()
    assert opening_ids(bookworm, "always", "") == (0,)
    assert opening_ids(with_bos(), "never", "") == ()
    without = with_bos()
    without.bos_token = None
    with pytest.raises(InvalidSpec, match="no beginning-of-sequence token") as caught:
        opening_ids(without, "always", "/tune")
    assert caught.value.field == "/tune/bos"


def test_the_harness_follows_the_same_rule(bookworm: PreTrainedTokenizerBase) -> None:
    cases = [(bookworm, "auto"), (bookworm, "always"), (bookworm, "never"), (with_bos(), "auto"), (with_bos(), "never")]
    found = []
    for tokenizer, bos in cases:
        prompted, opens = harness.prompting(tokenizer, bos, "/evaluate/0")  # type: ignore[arg-type]
        found.append(prompted("a", add_special_tokens=opens)["input_ids"])
    assert found == [[67], [0, 67], [67], [0, 67], [67]]
    assert bookworm("a")["input_ids"] == [67]  # untouched


def test_every_window_begins_with_it(sources: Sources) -> None:
    tokenizer = with_bos()
    drawn, tokens = windows("calibration.txt", tokenizer, sources)
    bare, _ = windows("calibration.txt", tokenizer, sources, bos="never")
    assert (drawn.shape, drawn[:, 0].tolist()) == (bare.shape, [0] * 6)
    assert tokens.report is not None
    assert tokens.report.opening == ["<s>"]
    consecutive = windows_of(tokens, 16, count=3).ids_NL
    assert consecutive[:, 0].tolist() == [0, 0, 0]
    assert torch.equal(consecutive[:, 1:].flatten(), tokens.ids_T[:45])  # nothing of the text is left out


def test_tokens_beyond_the_embedding_are_refused_before_work(sources: Sources, save_model: SaveModel) -> None:
    from transformers import LlamaConfig

    from tests.helpers.small_models import SIZES

    save_model("tiny", LlamaConfig(**SIZES | {"vocab_size": 4000}))
    spec = spec_of(calibrate=None, score={"method": "magnitude"}, evaluate=[
        {"method": "perplexity", "dataset": "a.txt", "sequence_length": 8, "samples": 1}
    ])  # fmt: skip
    words = AutoTokenizer.from_pretrained(sources.models_dir / "tiny")
    (sources.data_dir / "a.txt").write_text(
        "It was " + words.decode([4050, 4051]) + " and more words than are needed here."
    )
    model = load(spec, sources)
    with pytest.raises(
        UnsupportedModel, match=r"\d of the \d+ tokens of a part of a.txt .* 4000 rows, the first 40[0-9]{2}"
    ):
        refuse_unknown_tokens(spec, model, sources)
    with pytest.raises(UnsupportedModel):  # the text happens to hold some
        calibration(spec_of(), model, sources)
    text = {"dataset": "a.txt", "steps": 2, "batch": 2, "sequence_length": 8}
    trained = spec_of(calibrate=None, score=None, train={"method": "gradual", **text})
    tuned = spec_of(calibrate=None, score={"method": "magnitude"}, tune={"method": "full", **text})
    for of_training in (trained, tuned):
        with pytest.raises(UnsupportedModel, match=r"of a part of a\.txt .* 4000 rows"):
            refuse_unknown_tokens(of_training, model, sources)
    (sources.data_dir / "a.txt").write_text("a b c d e f g h i j k l m n")
    refuse_unknown_tokens(spec, model, sources)


def test_rows_shorter_than_windows_are_documents_only_by_name(
    bookworm: PreTrainedTokenizerBase, sources: Sources
) -> None:
    """WikiText's rows are paragraphs: an interval over them would take windows of one article for several."""
    rows = [{"text": f"Paragraph {row} of a book. " * 4, "book": row // 8} for row in range(48)]
    (sources.data_dir / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def documents_of(length: int, **fields: Any) -> Any:
        params = PerplexityParams(dataset="a.jsonl", sequence_length=length, samples=6, **fields)
        read = lambda ref, wanted: load_tokens(ref, bookworm, sources, "", wanted)  # noqa: E731
        return measured_windows(params, read, "").documents

    assert documents_of(128) is None
    assert len(set(documents_of(128, document_field="book"))) > 1
    assert len(set(documents_of(16))) > 1, "windows shorter than rows are each of one"


def test_a_data_directory_that_cannot_be_looked_into_is_told(
    bookworm: PreTrainedTokenizerBase, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    error = refused("a.txt", bookworm, sources)
    assert (error.code, error.field) == ("dataset_not_found", "/calibrate/dataset")
