"""Text to token ids, and token ids to windows. N = windows, L = tokens per window, T = tokens of a text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import DatasetNotFound, DatasetTooShort, HubUnavailable, InvalidSpec
from workers.engine.sources import Sources, resolve_dataset

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from workers.engine.refs import DataRef
    from workers.engine.registry import LossMethodParams

CHARACTERS_PER_TOKEN = 16
"""Read this much text per token wanted, four times what English takes: bounds how much of a large dataset is fetched,
and leaves random windows a choice."""
DOCUMENT_BREAK = "\n\n"
"""Between documents, as in the literature's WikiText protocol (GPTQ, SparseGPT, Wanda)."""


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it."""

    ids_T: Tensor
    """int64, without special tokens."""


def load_tokens(
    ref: DataRef,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    field: str,
    *,
    max_characters: int | None = None,
) -> Tokens:
    """Tokenize the documents of `ref`, joined by an empty line.

    `field` is the JSON pointer of `ref` in the spec, for errors. Reading stops after the document that brings the text
    to `max_characters`, so that a hub dataset of terabytes is not downloaded for a few windows.

    Raises DatasetNotFound, HubUnavailable, or InvalidSpec where the text column is missing or the file is not what its
    name says.
    """
    documents: list[str] = []
    characters = 0
    for document in _documents(ref, sources, field):
        documents.append(document)
        characters += len(document)
        if max_characters is not None and characters >= max_characters:
            break
    # verbose=False: a text longer than the context is the point here, not a mistake to warn of.
    encoded = tokenizer(DOCUMENT_BREAK.join(documents), add_special_tokens=False, verbose=False)
    return Tokens(torch.tensor(encoded["input_ids"], dtype=torch.int64))


def consecutive_windows(tokens: Tokens, length: int, *, count: int | None, field: str) -> Tensor:
    """The first `count` (None: all) non-overlapping windows, int64 [N, L]; a rest shorter than L is left out.

    Raises DatasetTooShort if there are fewer than `count`, or none.
    """
    fit = len(tokens.ids_T) // length
    if fit < (count or 1):
        raise _too_short(tokens, length, count or 1, field)
    count = fit if count is None else count
    return tokens.ids_T[: count * length].reshape(count, length)


def loss_windows(
    params: LossMethodParams, load: Callable[[LossMethodParams, int | None], Tokens], field: str
) -> Tensor:
    """The windows whose loss an evaluation measures and a target may bound, int64 [N, L].

    `load` reads at most so many characters. Raises what it raises, and DatasetTooShort.
    """
    length, count = params.sequence_length, params.samples
    tokens = load(params, count and count * length * CHARACTERS_PER_TOKEN)
    return consecutive_windows(tokens, length, count=count, field=field)


def random_windows(tokens: Tokens, length: int, *, count: int, seed: int, field: str) -> Tensor:
    """`count` windows at random starts, int64 [N, L]; they may overlap, as in the calibration of GPTQ and Wanda.

    Raises DatasetTooShort if the text holds fewer tokens than `count` windows without overlap: then the windows would
    mostly repeat each other.
    """
    if len(tokens.ids_T) < count * length:
        raise _too_short(tokens, length, count, field)
    generator = torch.Generator().manual_seed(seed)
    starts_N = torch.randint(len(tokens.ids_T) - length + 1, (count,), generator=generator)
    return torch.stack([tokens.ids_T[start : start + length] for start in starts_N.tolist()])


def ids_digest(ids: Tensor) -> str:
    """`sha256:` of token ids of any shape, as little-endian int64 in row order: what a report records of a text."""
    return "sha256:" + hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()


def _too_short(tokens: Tokens, length: int, count: int, field: str) -> DatasetTooShort:
    have = len(tokens.ids_T)
    return DatasetTooShort(
        f"{count} windows of {length} tokens need {count * length} tokens; the text has {have}, "
        f"enough for {have // length}",
        "ask for fewer or shorter windows, or give a longer text",
        field=field,
    )


def _documents(ref: DataRef, sources: Sources, field: str) -> Iterator[str]:
    path = resolve_dataset(ref, sources, field)
    if path is None:
        yield from _hub_documents(ref, field)
    elif path.suffix == ".txt":
        yield _decoded(path, f"{field}/dataset")
    elif path.suffix == ".jsonl":
        yield from _jsonl_documents(path, ref.text_field, field)
    else:
        yield from _parquet_documents(path, ref.text_field, field)


def _decoded(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidSpec(
            f"{path.name} is not UTF-8 text: {error}", "convert the file to UTF-8", field=field
        ) from error


def _jsonl_documents(path: Path, column: str, field: str) -> Iterator[str]:
    for number, line in enumerate(_decoded(path, f"{field}/dataset").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise InvalidSpec(
                f"{path.name} line {number} is not JSON: {error}",
                "give one JSON object a line",
                field=f"{field}/dataset",
            ) from error
        columns = list(row) if isinstance(row, dict) else []
        if column not in columns or not isinstance(row[column], str):
            raise _no_column(f"{path.name} line {number}", column, columns, field)
        yield row[column]


def _parquet_documents(path: Path, column: str, field: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InvalidSpec(
            f"{path.name} is not a parquet file: {error}", "check how the file was written", field=f"{field}/dataset"
        ) from error
    with file:
        schema = file.schema_arrow
        if column not in schema.names or not pyarrow.types.is_string(schema.field(column).type):
            raise _no_column(path.name, column, schema.names, field)
        for batch in file.iter_batches(columns=[column]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)


def _hub_documents(ref: DataRef, field: str) -> Iterator[str]:
    import datasets
    import httpx2

    try:
        rows = datasets.load_dataset(ref.dataset, ref.subset, split=ref.split, revision=ref.revision, streaming=True)
        for row in rows:
            if not isinstance(row.get(ref.text_field), str):
                raise _no_column(ref.dataset, ref.text_field, list(row), field)
            yield row[ref.text_field]
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        # load_dataset has one ValueError each for an unknown subset, split and loader; all of them name the choices.
        raise DatasetNotFound(
            f"{ref.dataset} (subset {ref.subset}, split {ref.split}, revision {ref.revision}): {error}",
            "check the dataset's name, subset, split and revision on the hub",
            field=f"{field}/dataset",
        ) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"the hub did not give {ref.dataset}: {error}",
            "try again later, or put the text as a file into the data directory",
            field=f"{field}/dataset",
        ) from error


def _no_column(where: str, column: str, columns: list[str], field: str) -> InvalidSpec:
    return InvalidSpec(
        f"{where} has no text in a column {column!r}; its columns are {', '.join(columns) or 'none'}",
        "set `text_field` to the column that holds the text",
        field=f"{field}/text_field",
    )
