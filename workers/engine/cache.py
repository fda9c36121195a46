"""What was measured of a model once, for later jobs: files named by the digest of everything that decided them.

A few kilobytes per model and text (statistics, not scores: a score follows from them and the weights at once). Safe to
delete at any time; entries appear whole or not at all, and one that cannot be read is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from workers.engine.files import write_whole

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
        self._write(self._path(kind, key, "json"), lambda path: path.write_text(json.dumps(value, sort_keys=True)))

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

    def _write(self, path: Path | None, write: Callable[[Path], object]) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, write, durable=False)
