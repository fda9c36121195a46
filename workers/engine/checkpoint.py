"""Resume points: a folder from which a killed job goes on where it was, to the same bytes.

    fingerprint.json            what decided the numbers; another fingerprint is refused
    outside.safetensors         tensors that belong to no block, in the type they ship in
    block-00003.safetensors     a finished block, as it ships
    hidden-00004.bin            input of the first block still to do (all calibration windows)
    grams-00003.safetensors     second moments of a dense block's inputs, where trial prunings need them
    tuning.safetensors          how far the training is: what trains, the optimiser's moments, the best state
    <name>.json                 results of whole stages
    try-2/                      the same of a further try, where the first result broke what the spec bounds

Every file appears whole or not at all (temporary name, fsync, rename), and its content is decided by the fingerprint
alone. So two processes may share the folder (a worker thought dead, and its successor): whatever one of them writes is
what the other would have written. `tuning` is one of many points of the same course: an older one costs time, no more.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import safe_open
from safetensors.torch import save_file

from workers.engine.errors import CheckpointMismatch
from workers.engine.files import sync, temporary_for, write_whole

if TYPE_CHECKING:
    from torch import Tensor

_TUNING = "tuning.safetensors"


class Checkpoint:
    """The resume points of one job, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        # Half-written files of an attempt that died. If it lives after all, its rename fails and it ends: it is stale.
        for leftover in directory.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def claim(self, fingerprint: Mapping[str, str]) -> None:
        """Stamp the folder with what decides the numbers. Raises CheckpointMismatch if it bears another stamp."""
        found = self.load_json("fingerprint")
        if found is None:
            self.save_json("fingerprint", dict(fingerprint))
        elif found != fingerprint:
            names = sorted(k for k in {*found, *fingerprint} if found.get(k) != fingerprint.get(k))
            raise CheckpointMismatch(
                f"the resume points in {self.directory.name} were made with another {', '.join(names)}",
                "run with an empty checkpoint directory to start over, or put back what changed",
            )

    def of_try(self, number: int) -> Checkpoint:
        """The resume points of a further try, in a folder of their own: what a former one wrote stays apart."""
        return Checkpoint(self.directory / f"try-{number}")

    def forget_result(self) -> None:
        """Remove what one try alone needed: its allocation, blocks, their inputs, and its training."""
        for pattern in ("allocation.json", "outside.safetensors", "block-*", "hidden-*", _TUNING):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def save_json(self, name: str, value: Any) -> None:
        """Keep the JSON-serialisable result of a whole stage."""
        self._write(f"{name}.json", lambda path: path.write_text(json.dumps(value, indent=1, sort_keys=True)))

    def load_json(self, name: str) -> Any | None:
        """What `save_json` kept, or None."""
        with suppress(FileNotFoundError):
            return json.loads((self.directory / f"{name}.json").read_text())
        return None

    def outside(self) -> Path:
        """File of the tensors that belong to no block; it exists once `save_outside` has returned."""
        return self.directory / "outside.safetensors"

    def save_outside(self, tensors: Mapping[str, Tensor]) -> None:
        self._write(self.outside().name, lambda path: save_file(dict(tensors), path))

    def block(self, index: int) -> Path:
        """File of a finished block; it exists once `save_block` has returned."""
        return self.directory / f"block-{index:05d}.safetensors"

    def save_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        self._write(self.block(index).name, lambda path: save_file(dict(tensors), path))

    def grams(self, block: int) -> Path:
        """File of the Gram matrices of a dense block's inputs; it exists once `save_grams` has returned."""
        return self.directory / f"grams-{block:05d}.safetensors"

    def save_grams(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        self._write(self.grams(block).name, lambda path: save_file(dict(tensors), path))

    def new_hidden(self) -> BinaryIO:
        """An empty file for hidden states; `keep_hidden` makes it a resume point. Readable while it is written."""
        return temporary_for(self.directory / "hidden").open("w+b", buffering=0)

    def keep_hidden(self, block: int, file: BinaryIO) -> None:
        """Make the file the input of `block`; inputs of earlier blocks are of no more use then."""
        os.fsync(file.fileno())
        Path(file.name).replace(self.directory / f"hidden-{block:05d}.bin")
        sync(self.directory)
        for index, path in self._hidden():
            if index < block:
                path.unlink(missing_ok=True)

    def latest_hidden(self) -> tuple[int, BinaryIO] | None:
        """(block, its input) of the furthest resume point, or None."""
        while found := self._hidden():
            index, path = max(found)
            # Whoever else works here deletes this file only after writing a further one: look again.
            with suppress(FileNotFoundError):
                return index, path.open("rb", buffering=0)
        return None

    def save_tuning(self, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Keep a point of the training: tensors and a JSON-serialisable state, in one file so that they fit."""
        metadata = {"state": json.dumps(state, sort_keys=True)}
        self._write(_TUNING, lambda path: save_file(dict(tensors), path, metadata=metadata))

    def load_tuning(self) -> tuple[dict[str, Tensor], Any] | None:
        """What `save_tuning` kept last, on the CPU, or None."""
        path = self.directory / _TUNING
        if not path.exists():
            return None
        with safe_open(path, framework="pt") as stored:
            state = json.loads(stored.metadata()["state"])
            return {name: stored.get_tensor(name) for name in stored.keys()}, state  # noqa: SIM118

    def scratch_file(self) -> BinaryIO:
        """A file without a name, gone when closed."""
        return tempfile.TemporaryFile(dir=self.directory, buffering=0)

    def finished_blocks(self) -> int:
        """How many blocks, counted from the first, are durable."""
        index = 0
        while self.block(index).exists():
            index += 1
        return index

    def _hidden(self) -> list[tuple[int, Path]]:
        return [(int(path.stem.split("-")[1]), path) for path in self.directory.glob("hidden-*.bin")]

    def _write(self, name: str, write: Callable[[Path], object]) -> None:
        write_whole(self.directory / name, write, durable=True)
