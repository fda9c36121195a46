"""Resume points: a folder from which a killed job goes on where it was, to the same bytes.

    fingerprint.<digest>.json           what decided the numbers; another fingerprint is refused
    outside.<digest>.safetensors        tensors that belong to no block, in the type they ship in
    block-00003.<digest>.safetensors    a finished block, as it ships
    hidden-00004.<digest>.bin           input of the first block still to do (all calibration windows)
    grams-00003.<digest>.safetensors    second moments of a dense block's inputs, where trial prunings need them
    tuning.<digest>.safetensors         how far the training is: what trains, the optimiser's moments, the best state
    <name>.<digest>.json                results of whole stages
    try-2/                              the same of a further try, where the first result broke what the spec bounds

Every file appears whole or not at all (temporary name, fsync, rename). The digest is that of its content: a file that
does not have it is set aside and counts as absent (`sealed.py`), and its work is done again. The fingerprint alone
decides what a file holds. So two processes may share the folder (a worker thought dead, and its successor): whatever
one of them writes is what the other would have written. `tuning` is one of many points of the same course: an older one
costs time, no more.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import safe_open
from safetensors.torch import save_file

from workers.engine.errors import CheckpointMismatch
from workers.engine.files.atomic_files import temporary_for
from workers.engine.store.sealed import DAMAGED, Sealed

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.events import Events

_TENSORS = ".safetensors"


class Checkpoint:
    """The resume points of one job, in `directory`."""

    def __init__(self, directory: Path, events: Events | None = None) -> None:
        """`events` are told of damaged files."""
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._events = events
        self._sealed = Sealed(directory, events)
        # Half-written files of an attempt that died. If it lives after all, its rename fails and it ends: it is stale.
        for leftover in directory.glob("*.tmp"):
            leftover.unlink(missing_ok=True)

    def claim(self, fingerprint: Mapping[str, str]) -> None:
        """Stamp the folder with what decides the numbers. Raises CheckpointMismatch if it bears another stamp."""
        found = self.load_json("fingerprint")
        if found is None:
            if any(self.directory.glob(f"fingerprint.*{DAMAGED}")):
                self._forget()  # whose they are cannot be known any more
            self.save_json("fingerprint", dict(fingerprint))
        elif found != fingerprint:
            names = sorted(k for k in {*found, *fingerprint} if found.get(k) != fingerprint.get(k))
            raise CheckpointMismatch(
                f"the resume points in {self.directory.name} were made with another {', '.join(names)}",
                "run with an empty checkpoint directory to start over, or put back what changed",
            )

    def of_try(self, number: int) -> Checkpoint:
        """The resume points of a further try, in a folder of their own: what a former one wrote stays apart."""
        return Checkpoint(self.directory / f"try-{number}", self._events)

    def forget_result(self) -> None:
        """Remove what one try alone needed: its allocation, blocks, their inputs, and its training."""
        for pattern in ("allocation.*", "outside.*", "block-*", "hidden-*", "tuning.*"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def save_json(self, name: str, value: Any) -> None:
        """Keep the JSON-serialisable result of a whole stage."""
        text = json.dumps(value, indent=1, sort_keys=True)
        self._sealed.write(name, ".json", lambda path: path.write_text(text), durable=True)

    def load_json(self, name: str) -> Any | None:
        """What `save_json` kept, or None."""
        while path := self._sealed.find(name, ".json"):
            with suppress(FileNotFoundError):  # a newer one has taken its place: look again
                return json.loads(path.read_text())
        return None

    def outside(self) -> Path:
        """File of the tensors that belong to no block; it exists once `save_outside` has returned."""
        return self._tensors("outside")

    def save_outside(self, tensors: Mapping[str, Tensor]) -> None:
        self._save("outside", tensors)

    def block(self, index: int) -> Path:
        """File of a finished block; it exists once `save_block` has returned."""
        return self._tensors(f"block-{index:05d}")

    def save_block(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        self._save(f"block-{index:05d}", tensors)

    def grams(self, block: int) -> Path:
        """File of the Gram matrices of a dense block's inputs; it exists once `save_grams` has returned."""
        return self._tensors(f"grams-{block:05d}")

    def save_grams(self, block: int, tensors: Mapping[str, Tensor]) -> None:
        self._save(f"grams-{block:05d}", tensors)

    def new_hidden(self) -> BinaryIO:
        """An empty file for hidden states; `keep_hidden` makes it a resume point. Readable while it is written."""
        return temporary_for(self.directory / "hidden").open("w+b", buffering=0)

    def keep_hidden(self, block: int, file: BinaryIO) -> None:
        """Make the file the input of `block`; inputs of earlier blocks are of no more use then."""
        self._sealed.adopt(f"hidden-{block:05d}", ".bin", Path(file.name), durable=True)
        for index, path in self._hidden():
            if index < block:
                path.unlink(missing_ok=True)

    def latest_hidden(self, at_most: int | None = None) -> tuple[int, BinaryIO] | None:
        """(block, its input) of the furthest resume point, not beyond block `at_most`; None if there is none."""
        for index in sorted({index for index, _ in self._hidden()}, reverse=True):
            if at_most is None or index <= at_most:
                path = self._sealed.find(f"hidden-{index:05d}", ".bin")
                try:
                    if path is not None:
                        return index, path.open("rb", buffering=0)
                except FileNotFoundError:
                    # Whoever else works here deletes this file only after writing a further one: look again.
                    return self.latest_hidden(at_most)
        return None

    def save_tuning(self, tensors: Mapping[str, Tensor], state: Any) -> None:
        """Keep a point of the training: tensors and a JSON-serialisable state, in one file so that they fit."""
        self._save("tuning", tensors, metadata={"state": json.dumps(state, sort_keys=True)})

    def load_tuning(self) -> tuple[dict[str, Tensor], Any] | None:
        """What `save_tuning` kept last, on the CPU, or None."""
        while path := self._sealed.find("tuning", _TENSORS):
            with suppress(FileNotFoundError), safe_open(path, framework="pt") as stored:
                state = json.loads(stored.metadata()["state"])
                return {name: stored.get_tensor(name) for name in stored.keys()}, state  # noqa: SIM118
        return None

    def scratch_file(self) -> BinaryIO:
        """A file without a name, gone when closed."""
        return tempfile.TemporaryFile(dir=self.directory, buffering=0)

    def finished_blocks(self) -> int:
        """How many blocks, counted from the first, are durable and whole."""
        index = 0
        while self.block(index).exists():
            index += 1
        return index

    def _forget(self) -> None:
        """Remove every resume point, also those of further tries."""
        for path in self.directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.suffix != DAMAGED:
                path.unlink(missing_ok=True)

    def _hidden(self) -> list[tuple[int, Path]]:
        return [(int(path.name[7:12]), path) for path in self.directory.glob("hidden-?????.*.bin")]

    def _tensors(self, stem: str) -> Path:
        """The file of a stem, or a path where none is."""
        return self._sealed.find(stem, _TENSORS) or self.directory / f"{stem}{_TENSORS}"

    def _save(self, stem: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
        self._sealed.write(stem, _TENSORS, lambda path: save_file(dict(tensors), path, metadata), durable=True)
