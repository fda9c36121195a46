"""Cache of measurements of models, for later jobs: files named by the digest of all values that they depend on.

    <kind>/<digest of the key>.<digest of the content>.json         or .safetensors

A few kilobytes per model and text (statistics, not scores, which are computed from them and the weights). Safe to
delete at any time; entries appear whole or not at all, and one whose content does not have its digest is set aside and
measured again (`sealed.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from workers.engine.ranks import Ranks
from workers.engine.store.sealed import Sealed

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.events import Events


class Cache:
    """Measurements in `directory`; without one nothing is kept."""

    def __init__(self, directory: Path | None, events: Events | None = None, ranks: Ranks | None = None) -> None:
        """`events` are told of damaged entries. The first of the `ranks` reads and writes for all."""
        self._directory = directory
        self._events = events
        self._ranks = ranks or Ranks()

    def json(self, kind: str, key: Mapping[str, Any]) -> Any | None:
        """The value that `keep_json` kept under `key`, or None."""

        def read() -> Any | None:
            if path := self._find(kind, key, ".json"):
                with suppress(FileNotFoundError):  # deleted meanwhile
                    return json.loads(path.read_text())
            return None

        return self._ranks.first(read)

    def keep_json(self, kind: str, key: Mapping[str, Any], value: Any) -> None:
        text = json.dumps(value, sort_keys=True)
        self._write(kind, key, ".json", lambda path: path.write_text(text))

    def tensors(self, kind: str, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The tensors that `keep_tensors` kept under `key`, or None."""

        def read() -> dict[str, Tensor] | None:
            if path := self._find(kind, key, ".safetensors"):
                with suppress(FileNotFoundError):
                    return dict(load_file(path))
            return None

        return self._ranks.first(read)

    def keep_tensors(self, kind: str, key: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self._write(kind, key, ".safetensors", lambda path: save_file(dict(tensors), path))

    def _find(self, kind: str, key: Mapping[str, Any], suffix: str) -> Path | None:
        return self._sealed(kind).find(_stem(key), suffix) if self._directory else None

    def _write(self, kind: str, key: Mapping[str, Any], suffix: str, write: Callable[[Path], object]) -> None:
        if self._directory is not None and self._ranks.leads:
            (self._directory / kind).mkdir(parents=True, exist_ok=True)
            self._sealed(kind).write(_stem(key), suffix, write, durable=False)

    def _sealed(self, kind: str) -> Sealed:
        assert self._directory is not None
        return Sealed(self._directory / kind, self._events)


def _stem(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
