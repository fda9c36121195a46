"""Files beside the weights that a model needs, or that its licence asks to be passed on. Import-light.

They are fetched from the hub, checked, read and copied into the result: these and no others. Code is not among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from workers.engine.files.model_files import (
    CONFIG_BYTES,
    TOKENIZER_BYTES,
    TOKENIZER_DIGITS,
    BadFile,
    are_token_ids,
    find,
    read_json,
    shown,
)

GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
    "tiktoken.model", "vocab.json", "vocab.txt", "vocab.bpe",
)  # fmt: skip
"""One of them makes a tokenizer."""
_SIDE_FILES = (
    TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.json",
    "chat_template.jinja", GENERATION, "preprocessor_config.json", "processor_config.json",
    "video_preprocessor_config.json",
)  # fmt: skip
_PATTERNS = re.compile(
    r"additional_chat_templates/[\w.\- ]+\.jinja"
    r"|[\w\-]+\.tiktoken"
    r"|(?i:licen[cs]e|notice|use_policy|copying)[\w.\-]*(?<!\.py)"
)
_PARSED = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.json")
"""Small JSON objects, checked before transformers reads them."""
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Of `generation_config.json`."""
_MOST_FILES = 10_000


def companions(names: Iterable[str]) -> tuple[str, ...]:
    """The files, as paths below a model's folder, that are copied with the weights."""
    known = {*_VOCABULARIES, *_SIDE_FILES}
    return tuple(sorted(name for name in names if name in known or _PATTERNS.fullmatch(name)))


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether one of the files holds a vocabulary."""
    return any(name in _VOCABULARIES or name.endswith(".tiktoken") for name in names)


def names_in(folder: Path) -> list[str]:
    """The files of a model's folder, and those of `additional_chat_templates`, as paths below it. Raises BadFile."""
    found: list[str] = []
    templates = folder / "additional_chat_templates"
    if templates.is_symlink():
        raise BadFile(f"{templates.name} is a link, which may be one that leads out of the model's folder")
    for part in (folder, templates) if templates.is_dir() else (folder,):
        for entry in part.iterdir():
            found.append(entry.relative_to(folder).as_posix())
            if len(found) > _MOST_FILES:
                raise BadFile(f"it holds more than {_MOST_FILES:,} files")
    return found


def check_companions(folder: Path, names: Iterable[str]) -> None:
    """Raise BadFile for irregular files, links out of the folder, files that are too large, or not JSON."""
    for name in names:
        path = find(folder, name)
        if path is None:
            raise BadFile(f"{shown(name)} is missing")
        limit = TOKENIZER_BYTES if name in _VOCABULARIES or name.endswith(".tiktoken") else CONFIG_BYTES
        if (size := path.stat().st_size) > limit:
            raise BadFile(f"{shown(name)} has {size:,} bytes, where at most {limit:,} are read")
        if name in _PARSED:
            read_json(folder, name, digits=TOKENIZER_DIGITS)
        for entry, found in read_json(folder, name).items() if name == GENERATION else ():
            if entry in _TOKEN_IDS and not are_token_ids(found):
                raise BadFile(f"{name}: `{entry}` is {shown(found)}, not a token id")
