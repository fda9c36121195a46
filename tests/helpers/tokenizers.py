"""Tokenizers read once in a process, and texts tokenised once: of a job of a small model that is half.

For conftests, of folders whose tests look at what is made of the tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from workers.engine.model import loaded
from workers.engine.sources.texts import token_ids


@pytest.fixture(scope="session", autouse=True)
def tokenized_once() -> Iterator[None]:
    """Folders with the same files share a tokenizer, until a test changes it, and it remembers the last texts."""
    tokenizers: dict[tuple[object, ...], tuple[Any, object]] = {}
    encode = token_ids._encoded

    @lru_cache(maxsize=64)
    def encoded(tokenizer: Any, state: object, text: str, *options: tuple[str, bool]) -> Mapping[str, Any]:
        return encode(tokenizer, text, **dict(options))

    class Shared:
        @staticmethod
        def from_pretrained(folder: Path, **options: bool) -> Any:
            key = (*_contents(folder), *options.items())
            found, state = tokenizers.get(key, (None, None))
            if found is None or _state(found) != state:
                found = AutoTokenizer.from_pretrained(folder, **options)
                tokenizers[key] = found, _state(found)
            return found

    def remembered(tokenizer: Any, text: str, **options: bool) -> Mapping[str, Any]:
        if not any(tokenizer is one for one, _ in tokenizers.values()):
            return encode(tokenizer, text, **options)
        found = encoded(tokenizer, _state(tokenizer), text, *sorted(options.items()))
        return {name: [*entries] for name, entries in found.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "AutoTokenizer", Shared)
        patch.setattr(token_ids, "_encoded", remembered)
        yield


def _contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Of each file its name and digest."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).digest()


def _state(tokenizer: Any) -> tuple[object, ...]:
    """The number of its tokens and its settings, without the folder that it is told."""
    settings = {name: entry for name, entry in vars(tokenizer).items() if isinstance(entry, str | int | None)}
    return len(tokenizer), *sorted((settings | {"name_or_path": ""}).items(), key=str)
