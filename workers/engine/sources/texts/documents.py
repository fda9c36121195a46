"""The documents of a `DataRef`: a .txt file is one, elsewhere each row, or the rows with one value in a column."""

from __future__ import annotations

import io
import re
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from workers.engine.errors import InvalidSpec
from workers.engine.sources.resolve import resolve_dataset
from workers.engine.sources.texts.conversations import is_turns, rendered
from workers.engine.sources.texts.files import characters, kind_of
from workers.engine.sources.texts.rows import Row, hub_rows, jsonl_rows, parquet_rows

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import OneDomain
    from workers.engine.sources.resolve import Sources

DOCUMENT_BREAK = "\n\n"
"""Between documents, as in the literature's WikiText protocol (GPTQ, SparseGPT, Wanda)."""
_SHOWN = 20
"""Names of domains in an error."""
_LOOKED_AT_BYTES, _LOOKED_AT_ROWS = 2**20, 100
"""Of a file of rows before a job: all of it up to so many bytes that are not compressed, else so many rows."""
_ZSTD = ".zst"
"""Only workers have what unpacks it."""
_SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Document:
    """A text to read once, in order: its pieces must be read before the next document."""

    key: Hashable
    """The same for all rows of one document."""
    pieces: Iterable[str]


@dataclass
class Tally:
    """Rows skipped and characters replaced while reading."""

    rows_skipped: int = 0
    """Null, empty, or nothing but white space."""
    characters_replaced: int = 0
    """Lone surrogates, which no encoding has, became U+FFFD."""


def is_one_document(ref: DataRef, sources: Sources, field: str) -> bool:
    """Whether a text is a .txt file. Raises DatasetNotFound."""
    path = resolve_dataset(ref, sources, field)
    return path is not None and kind_of(path) == ".txt"


def check_beginning(path: Path, text_field: str, document_field: str | None, field: str) -> None:
    """Read the first megabyte or the first row of a file, of which `documents` reads all; nothing of formats that the
    API cannot read (.zst, .parquet).

    Raises InvalidSpec where that would for it, but for conversations, which only the model's tokenizer writes out.
    """
    if path.suffix == _ZSTD:
        return
    if kind_of(path) == ".txt":
        next(characters(path, f"{field}/dataset"), None)
    elif kind_of(path) == ".jsonl":
        for where, row in islice(jsonl_rows(path, f"{field}/dataset"), 1):
            _check_row(where, row, text_field, document_field, field, first=True)


def check_domains(path: Path, column: str, domains: Collection[str], field: str) -> None:
    """The same for a text of which rows of some domains are read: that there are rows, and as far as it is looked at,
    that each has a domain; of a file that is looked at as a whole, that all `domains` are there."""
    if kind_of(path) == ".txt":
        raise _one_text(path, field)
    if kind_of(path) != ".jsonl" or path.suffix == _ZSTD:
        return
    found: dict[str, None] = {}
    all_of_it = path.suffix == ".jsonl" and path.stat().st_size <= _LOOKED_AT_BYTES
    rows = jsonl_rows(path, f"{field}/dataset")
    for where, row in rows if all_of_it else islice(rows, _LOOKED_AT_ROWS):
        found[_domain_of(where, row, column, f"{field}/domains")] = None
    for name in domains if all_of_it else ():
        if name not in found:
            raise _no_rows(name, column, [*found][:_SHOWN], f"{field}/domains")


def documents(
    ref: DataRef,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    field: str,
    tally: Tally,
    domain: OneDomain | None = None,
) -> Iterator[Document]:
    """The documents of `ref`, line ends as line feeds. `field` is its JSON pointer in the spec, for errors; `domain`:
    those of one of its domains alone.

    Raises DatasetNotFound, HubUnavailable, or InvalidSpec where a file is not what its name says, a column is missing
    or a conversation cannot be written out.
    """
    path = resolve_dataset(ref, sources, field)
    if path is not None and kind_of(path) == ".txt":
        if domain is not None:
            raise _one_text(path, field)
        yield Document(0, _clean(characters(path, f"{field}/dataset"), tally))
        return
    if path is None:
        rows = hub_rows(ref, f"{field}/dataset")
    elif kind_of(path) == ".jsonl":
        rows = jsonl_rows(path, f"{field}/dataset")
    else:
        columns = [name for name in (ref.text_field, ref.document_field, domain and domain.column) if name]
        rows = parquet_rows(path, tuple(dict.fromkeys(columns)), f"{field}/dataset")
    if domain is not None:
        rows = _of_domain(rows, domain, f"{field}/domains")
    yield from _of_rows(rows, ref, tokenizer, field, tally)


def _of_domain(rows: Iterable[Row], domain: OneDomain, field: str) -> Iterator[Row]:
    """The rows of a domain. Raises InvalidSpec where a row has none, and where none is of this one."""
    others: dict[str, None] = {}
    found = False
    for where, row in rows:
        name = _domain_of(where, row, domain.column, field)
        if name == domain.name:
            found = True
            yield where, row
        elif len(others) < _SHOWN:
            others[name] = None
    if not found:
        raise _no_rows(domain.name, domain.column, [*others], field)


def _domain_of(where: str, row: Mapping[str, Any], column: str, field: str) -> str:
    """Raises InvalidSpec where a row has none."""
    if not isinstance(name := row.get(column), str):
        raise InvalidSpec(
            f"{where} has no name of a domain in a column {column!r}; its columns are {', '.join(row) or 'none'}",
            "set `column` to one that holds a text in every row",
            field=f"{field}/column",
        )
    return name


def _no_rows(domain: str, column: str, others: Sequence[str], field: str) -> InvalidSpec:
    return InvalidSpec(
        f"no row has {domain!r} in the column {column!r}; there are {', '.join(others) or 'no rows'}",
        "name domains that the text has, or leave it out",
        field=f"{field}/shares",
    )


def _one_text(path: Path, field: str) -> InvalidSpec:
    return InvalidSpec(
        f"{path.name} is one text, without rows of a domain",
        "give the domains as rows of a .jsonl or .parquet file, or leave `domains` out",
        field=f"{field}/domains",
    )


def _of_rows(
    rows: Iterable[Row], ref: DataRef, tokenizer: PreTrainedTokenizerBase, field: str, tally: Tally
) -> Iterator[Document]:
    for number, (where, row) in enumerate(rows):
        _check_row(where, row, ref.text_field, ref.document_field, field, first=number == 0)
        text = _text(row[ref.text_field], tokenizer, where, f"{field}/text_field")
        if not text.strip():
            tally.rows_skipped += 1
            continue
        yield Document(row[ref.document_field] if ref.document_field else number, _clean([text], tally))


def _check_row(
    where: str, row: Mapping[str, Any], text_field: str, document_field: str | None, field: str, *, first: bool
) -> None:
    if text_field not in row or not _readable(row[text_field]):
        raise _no_text(where, row, text_field, field, first=first)
    if document_field is not None and not isinstance(row.get(document_field), str | int):
        raise InvalidSpec(
            f"{where} has no name of a document in a column {document_field!r}",
            "give every row a text or a whole number there, or leave `document_field` out: each row is one then",
            field=f"{field}/document_field",
        )


def _readable(value: object) -> bool:
    """A text, texts, or a conversation; or nothing, which is skipped."""
    if value is None or isinstance(value, str) or is_turns(value):
        return True
    return isinstance(value, list) and all(item is None or isinstance(item, str) for item in value)


def _text(value: Any, tokenizer: PreTrainedTokenizerBase, where: str, field: str) -> str:
    """Several texts of one row are one document."""
    if isinstance(value, list):
        if is_turns(value):
            return rendered(value, tokenizer, where, field)
        return DOCUMENT_BREAK.join(text for text in value if text and text.strip())
    return value or ""


def _clean(pieces: Iterable[str], tally: Tally) -> Iterator[str]:
    """The text with line feeds as line ends and without surrogates."""
    ends = io.IncrementalNewlineDecoder(None, translate=True)
    for piece in pieces:
        text, replaced = _SURROGATES.subn("\ufffd", ends.decode(piece))
        tally.characters_replaced += replaced
        yield text
    yield ends.decode("", final=True)


def _no_text(where: str, row: Mapping[str, Any], column: str, field: str, *, first: bool) -> InvalidSpec:
    """The error for a row without text, with a hint that depends on the row's columns."""
    others = [name for name, value in row.items() if value is not None and _readable(value)]
    if not first:
        hint = f"give every row a text in {column!r}, or leave the row out"
    elif others:
        hint = f"set `text_field` to a column that holds text: {', '.join(others)}"
    else:
        hint = 'write the text as a column of its own, such as {"text": "…"} as a line of JSON'
    return InvalidSpec(
        f"{where} has no text in a column {column!r}; its columns are {', '.join(row) or 'none'}",
        hint,
        field=f"{field}/text_field",
    )
