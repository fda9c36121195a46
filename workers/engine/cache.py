"""What was measured of a model once, for later jobs: files named by the digest of everything that decided them.

A few kilobytes per model and text (statistics, not scores: a score follows from them and the weights at once). Safe to
delete at any time; entries appear whole or not at all, and one that cannot be read is measured again.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from torch import Tensor


class Cache:
    """Measurements in `directory`; without one nothing is kept."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    def json(self, kind: str, key: Mapping[str, Any]) -> Any | None:
        """What `keep_json` kept under `key`, or None."""
        if (path := self._path(kind, key, "json")) is not None:
            with suppress(FileNotFoundError, ValueError):
                return json.loads(path.read_text())
        return None

    def keep_json(self, kind: str, key: Mapping[str, Any], value: Any) -> None:
        self._write(self._path(kind, key, "json"), lambda path: _write_text(path, json.dumps(value, sort_keys=True)))

    def tensors(self, kind: str, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """What `keep_tensors` kept under `key`, or None."""
        if (path := self._path(kind, key, "safetensors")) is not None:
            with suppress(FileNotFoundError, SafetensorError):
                found: dict[str, Tensor] = load_file(path)
                return found
        return None

    def keep_tensors(self, kind: str, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._write(self._path(kind, key, "safetensors"), lambda path: save_file(dict(tensors), path))

    def _path(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path | None:
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self._directory / kind / f"{digest}.{suffix}" if self._directory else None

    def _write(self, path: Path | None, write: Callable[[Path], None]) -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}-{uuid.uuid4().hex}.tmp")
        try:
            write(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)
