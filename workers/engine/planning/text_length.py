"""Whether the texts of a spec can be read, and have as many tokens as the job reads at least. Import-light.

Refused is only what cannot succeed with any count that the model's tokenizer may make; the rest is an estimate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import try_to_load_from_cache

from workers.engine.contracts.params import Stat, WindowsMethodParams
from workers.engine.contracts.tuning_params import TrainingParams
from workers.engine.errors import DatasetTooShort, SequenceTooLong
from workers.engine.report import PlannedText
from workers.engine.sources.texts.documents import check_beginning, check_domains
from workers.engine.sources.texts.sample import sample
from workers.engine.sources.texts.vocabulary import MOST_PER_BYTE, TOKENIZER, Vocabulary, vocabulary
from workers.engine.spec import Calibrate

if TYPE_CHECKING:
    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.train_params import TrainMethodParams
    from workers.engine.sources.resolve import ModelSource, Sources
    from workers.engine.spec import CompressionSpec

COUNTED_CHARACTERS = 2**16
"""Of a sample: a few tens of milliseconds."""
USUAL_BYTES = 4
"""A token, in English, where the vocabulary is not at hand."""
_OPENING = 2
"""At most one token of so many in a window is of its opening, and not of the text."""
_MARGIN = 0.05
"""Of an estimate, where a value is suggested. Of the shipped texts it was 0.3 % off."""
_SHORTEST = 8
"""Tokens of a window, in every spec."""
_LONGEST = 32
"""Characters of a token of prose, where the vocabulary is not at hand."""


def check_text(spec: CompressionSpec, field: str, ref: DataRef, path: Path | None, source: ModelSource) -> None:
    """Raises InvalidSpec where the file at `path` does not begin as its name and `ref`, the text at `field`, say, and
    DatasetTooShort where it cannot have as many tokens as that needs. One that only workers may read is not looked at.
    """
    if path is None or not _is_read(spec, field) or not os.access(path, os.R_OK):
        return
    status = path.stat()
    if isinstance(ref, TrainingParams) and ref.domains:  # of which only some rows are read
        of_file = path, status.st_size, status.st_mtime_ns
        _check_domains(*of_file, ref.domains.column, tuple(ref.domains.shares), field)
    else:
        _check_beginning(path, status.st_size, status.st_mtime_ns, ref.text_field, ref.document_field, field)
    if ref.least_windows and path.suffix in (".txt", ".jsonl"):
        _refuse_too_short(ref, field, path, status.st_size, source)


@lru_cache(maxsize=256)
def _check_beginning(
    path: Path, size: int, mtime_ns: int, text_field: str, document_field: str | None, field: str
) -> None:
    check_beginning(path, text_field, document_field, field)


@lru_cache(maxsize=256)
def _check_domains(path: Path, size: int, mtime_ns: int, column: str, domains: tuple[str, ...], field: str) -> None:
    check_domains(path, column, domains, field)


def _refuse_too_short(ref: DataRef, field: str, path: Path, size: int, source: ModelSource) -> None:
    needed = ref.least_windows * ref.window_tokens
    if size > 0:
        if path.suffix != ".txt" or size * MOST_PER_BYTE * _OPENING >= needed:
            return
        known = _vocabulary(source)
        if known is None or not known.bounded:
            return
    windows = f"{ref.least_windows:,} windows" if ref.least_windows > 1 else "a window"
    raise DatasetTooShort(
        f"{ref.label} has {size:,} bytes, too few for {windows} of {ref.window_tokens:,} tokens",
        _remedy(_suggested(field, ref, _tokens(path, ref, source) or 0)),
        field=field,
    )


def least_tokens(text: str, source: ModelSource) -> int:
    """A number of tokens that a text surely has at least; 0 of an empty one."""
    known = _vocabulary(source)
    counted = int(known.count(text) * (1 - _MARGIN)) if known else -(-len(text) // _LONGEST)
    return max(min(len(text), 1), counted)


def check_prompt(params: TrainMethodParams, tokens: int, context: int) -> None:
    """Raises SequenceTooLong where a text of at least so many tokens, read before every window of a training, and a
    window exceed the model's context."""
    if tokens and tokens + params.sequence_length > context:
        room = context - tokens
        shorter = f"use a sequence_length of at most {room}, or a shorter prompt"
        raise SequenceTooLong(
            f"the prompt's {tokens} tokens or more and windows of {params.sequence_length} exceed the model's context "
            f"of {context}",
            shorter if room >= _SHORTEST else "shorten the prompt",
            field="/train/prompt",
        )


def planned_texts(spec: CompressionSpec, source: ModelSource, sources: Sources) -> list[PlannedText]:
    """How much the job reads at least of each text that it cuts into windows, and about how much there is."""
    found = []
    for field, ref in spec.texts().items():
        if not ref.least_windows or not _is_read(spec, field):
            continue
        tokens = _tokens(sources.data_dir / ref.dataset, ref, source) if ref.local else None
        found.append(
            PlannedText(
                field=field,
                dataset=ref.label,
                windows=ref.least_windows,
                window_tokens=ref.window_tokens,
                tokens=tokens,
                suggested={} if tokens is None else _suggested(field, ref, tokens),
            )
        )
    return found


def length_warnings(texts: list[PlannedText]) -> list[str]:
    """A sentence for each text that is probably too short."""
    found = []
    for text in texts:
        needed = text.windows * text.window_tokens
        if text.tokens is None or text.tokens >= needed:
            continue
        reads = f"{text.windows:,} windows of {text.window_tokens:,}" if text.windows > 1 else "a window"
        found.append(
            f"{text.dataset} has about {_rounded(text.tokens):,} tokens, and `{text.field[1:]}` reads {reads}, "
            f"{needed:,} tokens: the job would fail; {_remedy(text.suggested)}"
        )
    return found


def _is_read(spec: CompressionSpec, field: str) -> bool:
    return field != "/calibrate" or spec.needs is not Stat.NONE


def _suggested(field: str, ref: DataRef, tokens: int) -> dict[str, int]:
    """Pointer -> value that the text suffices for, each alone."""
    if tokens >= ref.least_windows * ref.window_tokens:
        return {}
    found = {}
    sure = int(tokens * (1 - _MARGIN))
    if isinstance(ref, Calibrate | WindowsMethodParams) and (samples := sure // ref.window_tokens):
        found[f"{field}/samples"] = samples
    if (length := sure // ref.least_windows) >= _SHORTEST:
        found[f"{field}/sequence_length"] = length
    return found


def _remedy(suggested: Mapping[str, int]) -> str:
    instead = [f"`{pointer[1:].replace('/', '.')}` to {value}" for pointer, value in suggested.items()]
    return f"set {' or '.join(instead)}, or give a longer text" if instead else "give a longer text"


def _tokens(path: Path, ref: DataRef, source: ModelSource) -> int | None:
    """About how many tokens a local text has; None where that is not known."""
    status = path.stat()
    return _counted(path, status.st_size, status.st_mtime_ns, ref.text_field, _vocabulary(source))


@lru_cache(maxsize=256)
def _counted(path: Path, size: int, mtime_ns: int, column: str, known: Vocabulary | None) -> int | None:
    found = sample(path, column)
    if found is None:
        return None
    counted = found.text[:COUNTED_CHARACTERS]
    if not counted:
        return 0
    tokens = known.count(counted) if known else len(counted.encode(errors="replace")) / USUAL_BYTES
    return int(tokens * len(found.text) / len(counted) / found.share)


def _vocabulary(source: ModelSource) -> Vocabulary | None:
    """That of a model on this disk, or in the hub's cache."""
    if source.path is not None:
        return vocabulary(source.path)
    found = try_to_load_from_cache(source.id, TOKENIZER, revision=source.hub_commit)
    return vocabulary(Path(found).parent) if isinstance(found, str) else None


def _rounded(tokens: int) -> int:
    """To three digits."""
    return int(float(f"{tokens:.3g}"))
