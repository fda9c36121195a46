"""Tables of texts to rows: JSON lines, parquet, data sets of the hub. A row is (where it is, column -> value)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.engine.errors import DatasetNotFound, HubUnavailable, InvalidSpec
from workers.engine.sources.texts.files import lines, refuse_fault

if TYPE_CHECKING:
    from workers.engine.contracts.refs import DataRef

Row = tuple[str, Mapping[str, Any]]
BATCH_BYTES = 2**20
LARGEST_ROW = 2**26
"""Bytes a row of a parquet file takes on average at most: a value has to be in memory as a whole."""


def jsonl_rows(path: Path, field: str) -> Iterator[Row]:
    """Raises InvalidSpec at `field` where a line is no JSON object, and what reading lines raises."""
    for number, line in lines(path, field):
        where = f"{path.name} line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidSpec(f"{where} is not JSON: {error}", "give one JSON object a line", field=field) from error
        yield where, row if isinstance(row, dict) else {}


def parquet_rows(path: Path, columns: tuple[str, ...], field: str) -> Iterator[Row]:
    """Of `columns` only, and of all where none is named or one of them is not there. Raises InvalidSpec for
    damaged files and for values of `columns` that cannot be read."""
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
        if twice := next((name for name in columns if schema.names.count(name) > 1), None):
            raise InvalidSpec(
                f"{path.name} has several columns {twice!r}", "give each column a name of its own", field=field
            )
        wanted = list(columns) if columns and set(columns) <= set(schema.names) else None
        # Texts that the file holds once are not repeated in memory. pre_buffer would hold a whole row group.
        types = pyarrow.types
        strings = (types.is_string, types.is_large_string, types.is_string_view)
        repeated = [name for name in wanted or () if any(is_kind(schema.field(name).type) for is_kind in strings)]
        with parquet.ParquetFile(path, pre_buffer=False, read_dictionary=repeated) as file:
            number = 0
            for group in range(file.num_row_groups):
                facts = file.metadata.row_group(group)
                mean_bytes = facts.total_byte_size // max(1, facts.num_rows)
                if mean_bytes > LARGEST_ROW:
                    raise InvalidSpec(
                        f"{path.name} has rows of {mean_bytes // 2**20} MiB",
                        "cut long documents into several rows, or give them as a .txt file",
                        field=field,
                    )
                size = min(1024, max(1, BATCH_BYTES // max(1, mean_bytes)))
                for batch in file.iter_batches(size, row_groups=[group], columns=wanted):
                    for index in range(batch.num_rows):
                        number += 1
                        values = [_value(column[index], wanted is not None) for column in batch.columns]
                        yield f"{path.name} row {number}", dict(zip(batch.schema.names, values, strict=True))
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        refuse_fault(error, path, field)
        raise InvalidSpec(
            f"{path.name} is not a parquet file that can be read: {error}", "write the file again", field=field
        ) from error


def _value(scalar: Any, needed: bool) -> Any:
    """The value as a Python object; None where there is none (a year beyond 9999, text not UTF-8), unless `needed`."""
    try:
        return scalar.as_py()
    except (ValueError, OverflowError, LookupError, NotImplementedError):
        if needed:
            raise
        return None


def hub_rows(ref: DataRef, field: str) -> Iterator[Row]:
    """Raises DatasetNotFound or HubUnavailable with the JSON pointer of the data set."""
    import datasets
    import httpx2

    try:
        rows = datasets.load_dataset(ref.dataset, ref.subset, split=ref.split, revision=ref.revision, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{ref.dataset} row {number}", row
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        # load_dataset has one ValueError each for an unknown subset, split and loader; all of them name the choices.
        raise DatasetNotFound(
            f"{ref.dataset} (subset {ref.subset}, split {ref.split}, revision {ref.revision}): {error}",
            "check the dataset's name, subset, split and revision on the hub",
            field=field,
        ) from error
    except (httpx2.HTTPError, ConnectionError, TimeoutError) as error:
        raise HubUnavailable(
            f"the hub did not give {ref.dataset}: {error}",
            "try again later, or put the text as a file into the data directory",
            field=field,
        ) from error
